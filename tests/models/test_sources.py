"""Which base models are refused before a weight is read, and what identifies one."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from everlearn.errors import ModelError, RunError
from everlearn.models import folders, sources
from everlearn.models.folders import content_hash
from everlearn.models.sources import base_fingerprint, find_base
from everlearn.recipe import ModelConfig
from tests.tiny_models import save_tiny_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


def refusal(folder: str | Path) -> str:
    with pytest.raises(ModelError) as caught:
        find_base(ModelConfig(base=str(folder)), weights=False)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_complete_folder_is_found(tiny: Path) -> None:
    assert find_base(ModelConfig(base=str(tiny))).folder == tiny


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    for name in (tmp_path / "absent", "~", "./absent", "stages/01-qa/training"):
        assert f"no model folder {name}:" in refusal(name)


def test_a_folder_without_tokenizer_is_refused_with_the_remedy(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    assert "tokenizer.save_pretrained" in refusal(copy)


def test_a_folder_without_configuration_is_refused(copy: Path) -> None:
    (copy / "config.json").unlink()
    assert "config.json" in refusal(copy)


def test_pickled_weights_are_refused_with_the_remedy(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    assert "safetensors" in refusal(copy)
    assert "pickled" in refusal(copy)


def test_a_folder_without_weights_is_refused(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    assert "no weights" in refusal(copy)


def test_an_adapter_in_place_of_a_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "PEFT adapter" in refusal(tmp_path)


def test_an_unreachable_hub_name_takes_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert "cannot be reached" in refusal("somebody/no-such-model")


def test_a_misspelt_folder_is_not_taken_for_an_absent_network() -> None:
    assert "check the spelling" in refusal("my chekpoint")


def test_the_same_content_has_the_same_fingerprint_wherever_it_lies(tiny: Path, copy: Path) -> None:
    assert base_fingerprint(ModelConfig(base=str(tiny))) == base_fingerprint(ModelConfig(base=str(copy)))


def test_another_tokenizer_or_other_weights_change_the_fingerprint(tiny: Path, copy: Path, tmp_path: Path) -> None:
    first = base_fingerprint(ModelConfig(base=str(tiny)))
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": 7}))
    other = save_tiny_model(tmp_path / "other", seed=1)
    assert (
        len({first, base_fingerprint(ModelConfig(base=str(copy))), base_fingerprint(ModelConfig(base=str(other)))})
        == 3
    )


def test_what_a_model_loads_from_counts_and_nothing_else(tiny: Path, copy: Path) -> None:
    first = base_fingerprint(ModelConfig(base=str(tiny)))
    (copy / "README.md").write_text("about")
    assert base_fingerprint(ModelConfig(base=str(copy))) == first
    assert base_fingerprint(ModelConfig(base=str(copy), dtype="bfloat16")) != first
    found = {first}
    for number, name in enumerate(("chat_template.jinja", "added.json", "merges.txt"), 2):
        (copy / name).write_text("")
        found.add(base_fingerprint(ModelConfig(base=str(copy))))
        assert len(found) == number


@pytest.mark.parametrize("at", [0, 0.5, -1])
def test_a_change_anywhere_in_a_large_tensor_counts(at: float, tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    hashes = set()
    for change in (0, 1):
        values = np.zeros(20_000_000, np.float32)  # 80 MB
        values[int(at * values.size) if at > 0 else int(at)] += change
        (tmp_path / str(change)).mkdir()
        save_file({"w": values}, tmp_path / str(change) / "model.safetensors")
        hashes.add(content_hash(tmp_path / str(change)))
    assert len(hashes) == 2


def test_the_shape_of_a_tensor_counts(tiny: Path, copy: Path) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(tiny / "model.safetensors")
    name = "model.embed_tokens.weight"
    hashes = set()
    for shape in (tensors[name].shape, tensors[name].shape[::-1]):
        save_file(tensors | {name: tensors[name].reshape(shape)}, copy / "model.safetensors")
        hashes.add(content_hash(copy))
    assert len(hashes) == 2


def test_a_folder_is_hashed_again_only_where_its_files_have_changed(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = content_hash(copy)
    monkeypatch.setattr(folders.hashlib, "sha256", lambda: pytest.fail("hashed again"))
    assert content_hash(copy) == first
    monkeypatch.undo()
    state = (copy / "model.safetensors").stat()
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "model.safetensors").write_bytes(data)
    os.utime(copy / "model.safetensors", ns=(state.st_atime_ns, state.st_mtime_ns))
    assert content_hash(copy) != first


def test_every_file_of_a_tokenizer_that_transformers_knows_counts(tmp_path: Path) -> None:
    import importlib
    import pkgutil

    import transformers
    from transformers import PreTrainedTokenizerBase, models

    names = {"chat_template.jinja", "added_tokens.json", "special_tokens_map.json", "tokenizer.v4.json"}
    names |= {"tekken.json", "tokenizer.model.v3", "tiktoken.model", "qwen.tiktoken", "adapter_config.json"}
    for module in pkgutil.iter_modules(models.__path__):
        for path in Path(models.__path__[0], module.name).glob("tokenization_*.py"):
            try:
                found = vars(importlib.import_module(f"transformers.models.{module.name}.{path.stem}"))
            except (ImportError, NameError):
                continue  # needs a package that is not installed
            for kind in found.values():
                if isinstance(kind, type) and issubclass(kind, PreTrainedTokenizerBase):
                    names |= {name for name in kind.vocab_files_names.values() if name}
    assert len(names) > 30, transformers.__version__
    for name in names:
        (tmp_path / name).write_text("")
    hashes = {content_hash(tmp_path)}
    for name in names:
        (tmp_path / name).write_text("x")
        hashes.add(content_hash(tmp_path))
    assert len(hashes) == len(names) + 1


def test_a_chat_template_in_a_folder_of_its_own_counts(copy: Path) -> None:
    first = content_hash(copy)
    (copy / "additional_chat_templates").mkdir()
    (copy / "additional_chat_templates" / "tool_use.jinja").write_text("{{ messages }}")
    assert content_hash(copy) != first


class Hub:
    """A hub with one repository, whose main branch may move."""

    def __init__(self, root: Path, files: Path) -> None:
        self.root, self.files, self.head = root, files, "a" * 40
        self.asked: list[str | None] = []
        self.fault: OSError | None = None

    def snapshot_download(self, name, *, revision=None, allow_patterns=(), ignore_patterns=()) -> str:
        from huggingface_hub.utils import filter_repo_objects

        self.asked.append(revision)
        if self.fault:
            raise self.fault
        folder = self.root / (revision if revision and len(revision) == 40 else self.head)
        names = [path.name for path in self.files.iterdir()]
        for wanted in filter_repo_objects(names, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns):
            folder.mkdir(exist_ok=True)
            shutil.copy(self.files / wanted, folder / wanted)
        return str(folder)

    def list_repo_files(self, name, *, revision=None) -> list[str]:
        return [path.name for path in self.files.iterdir()]


@pytest.fixture
def hub(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    import huggingface_hub

    (tmp_path / "snapshots").mkdir()
    made = Hub(tmp_path / "snapshots", copy)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", made.snapshot_download)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", made.list_repo_files)
    sources._descriptions.cache_clear()
    sources._files_at.cache_clear()
    yield made
    sources._descriptions.cache_clear()
    sources._files_at.cache_clear()


def test_a_run_stays_with_the_commit_it_began_with(hub: Hub) -> None:
    config = ModelConfig(base="somebody/tiny")
    first = base_fingerprint(config)
    hub.head = "b" * 40
    assert base_fingerprint(config) == first
    assert find_base(config).commit == "a" * 40
    assert hub.asked == [None, "a" * 40]


def test_weights_in_mistrals_own_layout_are_not_fetched(hub: Hub) -> None:
    shutil.copy(hub.files / "model.safetensors", hub.files / "consolidated.safetensors")
    folder = find_base(ModelConfig(base="somebody/tiny")).folder
    assert (folder / "model.safetensors").exists()
    assert not (folder / "consolidated.safetensors").exists()
    sources._files_at.cache_clear()
    (hub.files / "model.safetensors").unlink()
    shutil.rmtree(folder)
    sources._descriptions.cache_clear()
    assert "no weights" in refusal("somebody/tiny")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("GatedRepoError", "is gated on the Hugging Face hub: accept its licence"),
        ("RevisionNotFoundError", "model.revision 'old' does not exist for 'somebody/tiny'"),
        ("RepositoryNotFoundError", "is neither a local folder nor a public model"),
    ],
)
def test_what_the_hub_refuses_is_said_with_the_remedy(hub: Hub, kind: str, words: str) -> None:
    from huggingface_hub import errors

    fault = getattr(errors, kind)
    hub.fault = fault.__new__(fault)  # made of a response otherwise
    with pytest.raises(ModelError) as caught:
        find_base(ModelConfig(base="somebody/tiny", revision="old"))
    assert words in str(caught.value)


def test_a_model_of_the_hub_is_judged_by_its_list_of_files_or_offline_by_what_is_there(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    config = ModelConfig(base="somebody/tiny")
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda *_, **__: ["onnx/model.safetensors"])
    assert "has no weights" in refusal("somebody/tiny")
    sources._files_at.cache_clear()

    def unreachable(*_: object, **__: object) -> list[str]:
        raise OSError("offline")

    monkeypatch.setattr(huggingface_hub, "list_repo_files", unreachable)
    assert find_base(config, weights=False).commit == "a" * 40
    (hub.files / "tokenizer.json").unlink()
    sources._descriptions.cache_clear()
    shutil.rmtree(hub.root / ("a" * 40))
    assert "has no tokenizer" in refusal("somebody/tiny")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_not_taken_for_an_absent_network(hub: Hub, number: int) -> None:
    hub.fault = OSError(number, "No space left on device", "/cache/model.safetensors")
    with pytest.raises(RunError, match=r"disk is full while writing /cache/model\.safetensors"):
        find_base(ModelConfig(base="somebody/tiny"))


def test_an_adapter_names_the_hubs_model_and_commit_as_its_base(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import peft.utils.save_and_load as peft_files

    from everlearn.models.loading import load_model, save_checkpoint

    asked: list[object] = []
    monkeypatch.setattr(peft_files, "check_file_exists_on_hf_hub", lambda *name: asked.append(name))
    save_checkpoint(load_model(ModelConfig(base="somebody/tiny", device="cpu"), trainable=True), tmp_path / "stage")
    stored = json.loads((tmp_path / "stage" / "adapter" / "adapter_config.json").read_text())
    assert (stored["base_model_name_or_path"], stored["revision"]) == ("somebody/tiny", "a" * 40)
    assert not asked  # saving needs no network
    assert str(tmp_path) not in (tmp_path / "stage" / "adapter" / "README.md").read_text()
