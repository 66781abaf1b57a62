"""Which files of a model folder are taken for weights, and that nothing else is opened under whatever name."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from everlearn.errors import ModelError
from everlearn.models.checking import check_model
from everlearn.models.loading import load_model
from everlearn.models.sources import base_fingerprint, find_base
from everlearn.recipe import ModelConfig
from tests.tiny_models import save_tiny_model

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def sharded(tiny: Path, tmp_path: Path) -> Path:
    """A folder whose index names two files, `one.safetensors` and `two.safetensors`."""
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(tiny, tmp_path / "sharded"))
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    for file, part in (("one", names[:5]), ("two", names[5:])):
        save_file({name: tensors[name] for name in part}, folder / f"{file}.safetensors", metadata={"format": "pt"})
    write_index(folder, {name: "one.safetensors" if name in names[:5] else "two.safetensors" for name in names})
    return folder


def write_index(folder: Path, weight_map: object, metadata: object = None) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": metadata or {"total_size": 1}, "weight_map": weight_map}))


def config(folder: Path) -> ModelConfig:
    return ModelConfig(base=str(folder), device="cpu", dtype="float32")


def refusal(folder: Path) -> str:
    """One sentence, before anything is loaded."""
    with pytest.raises(ModelError) as caught:
        check_model(config(folder))
    text = str(caught.value)
    assert text.startswith(f"model.base {folder}")
    assert "\n" not in text
    with pytest.raises(ModelError):
        load_model(config(folder))
    return text


def test_shards_are_loaded_and_each_counts(sharded: Path) -> None:
    load_model(config(sharded))
    found = {base_fingerprint(config(sharded))}
    for file in ("one.safetensors", "two.safetensors"):
        data = bytearray((sharded / file).read_bytes())
        data[-1] ^= 1
        (sharded / file).write_bytes(data)
        found.add(base_fingerprint(config(sharded)))
    assert len(found) == 3


class Opened:
    """Unpickling it is seen."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (pytest.fail, ("a pickle was opened",))


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("weights.bin", "names 'weights.bin', which is no safetensors file in the same folder"),
        ("weights.safetensors", "weights.safetensors is no readable safetensors file"),
        ("../outside.safetensors", "which is no safetensors file in the same folder"),
        ("/tmp/outside.safetensors", "which is no safetensors file in the same folder"),
        ("sub/inside.safetensors", "which is no safetensors file in the same folder"),
        ("absent.safetensors", "'absent.safetensors', which is not there"),
        ("", "which is no safetensors file in the same folder"),
    ],
)
def test_an_index_names_safetensors_files_beside_it_and_nothing_else(sharded: Path, file: str, words: str) -> None:
    import pickle

    (sharded / "sub").mkdir()
    shutil.copy(sharded / "one.safetensors", sharded / "sub" / "inside.safetensors")
    shutil.copy(sharded / "one.safetensors", sharded.parent / "outside.safetensors")
    for name in ("weights.bin", "weights.safetensors"):
        (sharded / name).write_bytes(pickle.dumps(Opened()))
    tree = json.loads((sharded / INDEX).read_text())
    tree["weight_map"][sorted(tree["weight_map"])[-1]] = file
    (sharded / INDEX).write_text(json.dumps(tree))
    assert words in refusal(sharded)


@pytest.mark.parametrize("weight_map", [None, [], {}, {"a": 1}, {"a": ["one.safetensors"]}, {"a": None}, "one"])
def test_an_index_is_an_object_of_names(sharded: Path, weight_map: object) -> None:
    write_index(sharded, weight_map)
    assert f"{INDEX}" in refusal(sharded)
    write_index(sharded, {"a": "one.safetensors"}, metadata=[1])
    assert "metadata" in refusal(sharded)


@pytest.mark.parametrize("place", ["config.json", "text_config"])
@pytest.mark.parametrize("name", ["adapter_model.bin", "w.bin", "../m.safetensors", "/m.safetensors", 7])
def test_a_configuration_names_no_other_weights_than_safetensors(sharded: Path, name: object, place: str) -> None:
    tree = json.loads((sharded / "config.json").read_text())
    chosen = {"transformers_weights": name}
    (sharded / "config.json").write_text(
        json.dumps(tree | (chosen if place == "config.json" else {"text_config": chosen}))
    )
    assert "transformers_weights" in refusal(sharded)


def test_the_weights_that_a_configuration_names_are_those_that_are_read(sharded: Path) -> None:
    tree = json.loads((sharded / "config.json").read_text())
    (sharded / INDEX).rename(sharded / "other.safetensors.index.json")
    (sharded / "config.json").write_text(json.dumps(tree | {"transformers_weights": "other.safetensors.index.json"}))
    load_model(config(sharded))


def test_safetensors_of_another_name_are_not_taken_for_the_model(sharded: Path) -> None:
    (sharded / INDEX).unlink()
    assert "no weights called model.safetensors, nor an index of several" in refusal(sharded)


def test_an_adapter_beside_a_model_is_refused_and_so_are_checkpoints_of_several_machines(
    tiny: Path, tmp_path: Path
) -> None:
    one, two = (Path(shutil.copytree(tiny, tmp_path / name)) for name in ("one", "two"))
    (one / "adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere"}')
    assert "merge_and_unload()" in refusal(one)
    (two / "shard-00001-model-00001-of-00001.safetensors").write_bytes(b"")
    assert "distributed checkpoint" in refusal(two)


def test_a_link_leads_out_of_the_folder_only_into_the_hubs_cache(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models--a--b" / "snapshots" / "c"
    shutil.copytree(tiny, folder)
    for place in ("blobs", "elsewhere"):
        (tmp_path / "models--a--b" / place).mkdir()
        shutil.copy(tiny / "model.safetensors", tmp_path / "models--a--b" / place / "0123")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("../../blobs/0123")
    find_base(config(folder))
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("../../elsewhere/0123")
    assert "is a link out of the folder" in refusal(folder)
    linked = tmp_path / "linked"
    linked.symlink_to(tiny)
    find_base(config(linked))


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"])
def test_links_to_nothing_pipes_and_folders_are_said_and_nothing_waits(tiny: Path, tmp_path: Path, file: str) -> None:
    for kind in ("link", "pipe", "folder"):
        folder = Path(shutil.copytree(tiny, tmp_path / kind))
        (folder / file).unlink(missing_ok=True)
        if kind == "link":
            (folder / file).symlink_to("nothing")
        elif kind == "pipe":
            os.mkfifo(folder / file)
        else:
            (folder / file).mkdir()
        if kind == "folder" and file == "chat_template.jinja":
            check_model(config(folder))  # nothing opens it
        else:
            assert {"link": "is a link to", "pipe": "is a named pipe", "folder": "has no"}[kind] in refusal(folder)


def test_a_name_too_long_and_a_closed_folder_are_one_sentence(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="longer than the system allows"):
        find_base(ModelConfig(base="/" + "m" * 5000))

    def closed(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", closed)
    with pytest.raises(ModelError, match="access is denied"):
        find_base(config(tiny))


def test_a_tokenizer_is_read_from_the_folder_alone(tiny: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "paths"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    elsewhere = {"vocab_file": str(tiny / "tokenizer.json"), "special_tokens_map_file": "/root/a.json"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | elsewhere))
    check_model(config(folder))  # paths of the machine that it was written on, which are not looked at
    (folder / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    (folder / "tokenizer.model").write_bytes(b"")
    assert "tokenizer cannot be read" in refusal(folder)
    for key, value in (
        ("fast_tokenizer_files", ["../tokenizer.4.0.0.json"]),
        ("vocab", str(tiny / "vocab.json")),
        ("init_inputs", ["/root/vocab.json"]),
    ):
        (folder / "tokenizer_config.json").write_text(json.dumps(settings | {key: value}))
        assert f"tokenizer_config.json: {key}" in refusal(folder)


def test_code_on_the_hub_for_attention_is_refused(tiny: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "kernel"))
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"attn_implementation": "somebody/kernel"}))
    assert "attn_implementation names code on the Hugging Face hub" in refusal(folder)
