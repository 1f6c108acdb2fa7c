"""Writing a file by another backend than the current one, in a process of its own."""

import os
import pathlib
import pickle
import subprocess
import sys
import tempfile


def write(model, path, options, backend):
    """As a writer's `write`, by Keras' `backend`.

    Raises:
        RuntimeError: the other process failed; with the end of what it said.
    """
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        model.save(folder / "model.keras")
        (folder / "options.pickle").write_bytes(pickle.dumps(options))
        result = subprocess.run(
            [
                sys.executable,
                "-m",
                "keras_internimage.exports.subprocess_writer",
                str(folder),
                str(path),
            ],
            env={**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "2"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if result.returncode:
            said = "\n".join(result.stderr.strip().splitlines()[-12:])
            raise RuntimeError(
                f"{path.name} is written by Keras' {backend} backend in another process, which "
                f"failed:\n{said}"
            )


def main(folder, path):
    import keras

    # Registers what a model of this package consists of; `import keras_internimage` does not do so
    # where one of its modules is the program.
    import keras_internimage.exports.detectors
    import keras_internimage.layers
    import keras_internimage.models  # noqa: F401
    from keras_internimage.exports import formats

    folder = pathlib.Path(folder)
    options = pickle.loads((folder / "options.pickle").read_bytes())
    model = keras.saving.load_model(folder / "model.keras", compile=False)
    formats.writer(formats.FORMATS[options.format]).write(model, pathlib.Path(path), options)


if __name__ == "__main__":
    main(*sys.argv[1:])
