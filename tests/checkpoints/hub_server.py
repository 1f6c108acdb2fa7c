"""A hub of one's own, and repositories in the published form for it."""

import contextlib
import hashlib
import http.server
import json
import pathlib
import threading

from checkpoints.conftest import hub_names, save_safetensors, save_sharded
from deterministic import model_config

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PREPROCESSOR = {
    "crop_size": 64,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,
    "size": 64,
}
# What the published config.json have besides the arguments of the official constructor.
BESIDE = {
    "_name_or_path": "made-up/tiny",
    "act_layer": "GELU",
    "architectures": ["InternImageModel"],
    "auto_map": {"AutoModel": "modeling_internimage.InternImageModel"},
    "cls_scale": 1.5,
    "core_op": "DCNv3",
    "drop_path_rate": 0.0,
    "drop_path_type": "linear",
    "drop_rate": 0.0,
    "dw_kernel_size": None,
    "layer_scale": None,
    "level2_post_norm": False,
    "level2_post_norm_block_ids": None,
    "mlp_ratio": 4.0,
    "model_type": "internimage",
    "norm_layer": "LN",
    "torch_dtype": "float32",
    "transformers_version": "4.37.2",
    "with_cp": False,
}


def config(name, **changes):
    """The config.json of a tiny model."""
    return {**BESIDE, **model_config(name), **changes}


def repository(folder, name, weights, parts=1, **changes):
    """Writes a repository with Python files, which nobody must read, and returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(name, **changes)))
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    (folder / "modeling_internimage.py").write_text("raise SystemExit('code was run')\n")
    if parts == 1:
        save_safetensors(folder / "model.safetensors", hub_names(weights))
    else:
        save_sharded(folder, hub_names(weights), parts)
    return folder


class Hub(http.server.ThreadingHTTPServer):
    """`repositories`: folders by `organisation/name`; `refused`: statuses and codes likewise."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories, self.refused, self.requests, self.cut = {}, {}, [], None
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self._answer(False)

    def do_GET(self):
        self._answer(True)

    def _answer(self, with_content):
        path = self.path.partition("?")[0]
        self.server.requests.append((self.command, path))
        repository, _, rest = path.lstrip("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        status, code = self.server.refused.get(repository, (200, None))
        folder = self.server.repositories.get(repository)
        content = b""
        if status == 200 and folder is None:
            status, code = 404, "RepoNotFound"
        elif status == 200 and revision not in ("main", "v1", COMMIT):
            status, code = 404, "RevisionNotFound"
        elif status == 200 and not (folder / file).is_file():
            status, code = 404, "EntryNotFound"
        elif status == 200:
            content = pathlib.Path(folder, file).read_bytes()
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_content:
            cut = self.server.cut if file.endswith(".safetensors") else None
            self.wfile.write(content[:cut])
            if cut is not None:
                self.close_connection = True

    def log_message(self, *arguments):
        pass


@contextlib.contextmanager
def running():
    """A `Hub` that answers while the block runs."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield hub
        hub.shutdown()
        thread.join()
