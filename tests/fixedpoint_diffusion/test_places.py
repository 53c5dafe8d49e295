"""Where models are looked for: folders, variables of the environment, the cache of Hugging Face; nothing is fetched."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest
from huggingface_hub import constants

from fixedpoint.core.options import OptionError
from fixedpoint_diffusion import FolderError, ModelFolder
from fixedpoint_diffusion.fashion_mnist import DENOISER
from fixedpoint_diffusion.models.choices import DiffusersModel
from fixedpoint_diffusion.models.places import located

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of Hugging Face as its own client lays it out, and no way to the network."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("somebody asked the network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    kept = tmp_path / "cache" / "models--my--clothes"
    shutil.copytree(DENOISER, kept / "snapshots" / COMMIT)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text(COMMIT)
    return kept / "snapshots" / COMMIT


def test_a_model_in_the_cache_is_found_by_its_name(cache: Path) -> None:
    assert located("my/clothes") == cache
    assert located(f"my/clothes@{COMMIT}") == cache
    assert ModelFolder.open("my/clothes").event_shape == (1, 32, 32)
    model = DiffusersModel(path="my/clothes", classes=(1,))
    assert (model.path, model.sha256) == ("my/clothes", DiffusersModel(path=str(DENOISER)).sha256)


def test_what_the_cache_lacks_is_a_sentence_with_the_command(cache: Path) -> None:
    with pytest.raises(OptionError) as caught:
        DiffusersModel(path="google/ddpm-cifar10-32")
    assert str(caught.value) == (
        "DiffusersModel: path cannot be used: there is no folder google/ddpm-cifar10-32, and no model of this name in "
        "the cache of Hugging Face; nothing is downloaded here: hf download google/ddpm-cifar10-32"
    )
    with pytest.raises(FolderError, match=r"hf download my/clothes --revision old$"):
        located("my/clothes@old")


def test_a_folder_comes_before_the_cache(cache: Path) -> None:
    Path("my/clothes").mkdir(parents=True)
    assert located("my/clothes") == Path("my/clothes")


def test_home_and_variables_are_followed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(cache))
    monkeypatch.setenv("CLOTHES", str(cache))
    assert located("~") == located("$CLOTHES") == located("${CLOTHES}") == cache
    assert located("$CLOTHES/config.json").is_file()
    with pytest.raises(FolderError, match=r"^\$UNSET/x names the variable UNSET of the environment, which is not set$"):
        located("$UNSET/x")


def test_what_is_no_name_on_the_hub_is_a_folder_that_is_missing(cache: Path) -> None:
    assert located("a/b/c") == Path("a/b/c")
    assert located("my/clothes", hub=False) == Path("my/clothes")
    with pytest.raises(FolderError, match=r"^there is no folder a/b/c; a model is a folder as diffusers"):
        ModelFolder.open("a/b/c")
