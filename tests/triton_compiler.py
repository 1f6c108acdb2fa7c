"""DCNv3's Triton kernels compiled for GPUs that need not be there: a program, and what starts it.

Each job names a kernel, its dtype, its constants, warps and a compute capability. The process has
neither Keras nor PyTorch, so that it starts at once.
"""

import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import types

ROOT = pathlib.Path(__file__).resolve().parents[1]


def resources(jobs):
    """For each job registers, spilled and shared bytes, and the machine code's instructions.

    `narrow` are the additions to pointers of numbers of 32 bits that are no constants.
    """
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, __file__],
        env=environment,
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def _load_kernels():
    """The kernels' module, without what its packages import."""
    for name in ("keras_internimage", "keras_internimage.ops"):
        module = types.ModuleType(name)
        module.__path__ = [str(ROOT.joinpath(*name.split(".")))]
        sys.modules[name] = module
    path = ROOT / "keras_internimage" / "ops" / "triton" / "kernels.py"
    spec = importlib.util.spec_from_file_location("kernels", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _compile(kernels, job):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(kernels, f"{job['kernel']}_kernel")
    types_of = {"grad_inputs": "*fp32"} | dict.fromkeys(kernels.SIZES, "i32")
    if job["samples"] >= 2**31:
        types_of["samples"] = "i64"
    signature, aligned = {}, {}
    for place, name in enumerate(kernel.arg_names):
        constant = name in job["constants"]
        signature[name] = "constexpr" if constant else types_of.get(name, f"*{job['dtype']}")
        if signature[name][0] == "*":
            aligned[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, job["constants"], aligned)
    options = {"num_warps": job["warps"], "enable_fp_fusion": True}
    target = GPUTarget("cuda", job["capability"], 32)
    return triton.compile(source, target=target, options=options)


def _examine(compiled):
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        tool = [knobs.nvidia.cuobjdump.path, file.name]
        usage, code = (
            subprocess.run([*tool, option], capture_output=True, text=True, check=True).stdout
            for option in ("--dump-resource-usage", "-sass")
        )
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    instructions = re.findall(r"/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]+)", code)
    added = re.findall(r"tt\.addptr %\w+, (%\w+) : .*i32>? ", compiled.asm["ttir"])
    return {
        "narrow": [name for name in added if not name.startswith("%cst")],
        "registers": int(found[1]),
        "spilled": int(found[2]) + int(found[3]),
        "shared": compiled.metadata.shared,
        "code": instructions,
    }


if __name__ == "__main__":
    loaded = _load_kernels()
    print(json.dumps([_examine(_compile(loaded, job)) for job in json.load(sys.stdin)]))
