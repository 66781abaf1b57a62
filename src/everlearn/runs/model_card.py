"""The card of the model that a run hands back: what it was taught, how it did, how to load and prompt it.

Text that comes from the recipe or the data is escaped for Markdown; no row of the data is shown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from everlearn.data.instance import Instance, TaskStream
from everlearn.data.walk_prompts import WalkTemplate, framed_tags
from everlearn.data.walks import OPENING
from everlearn.data.word_prompts import FIRST, WordTemplate
from everlearn.data.words import OUTSIDE
from everlearn.models.kinds import EXPERTS, STORED
from everlearn.models.quantization import settings_of
from everlearn.visible import visible

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from everlearn.data.prompts import PromptTemplate
    from everlearn.evaluation.answering import Answerer
    from everlearn.recipe import Recipe

_FORMULAS = {
    "linear": 'linear(state, tensors[f"{at}.weight"], tensors[f"{at}.bias"])',
    **dict.fromkeys(("cosine", "prototype"), 'normalize(tensors[f"{at}.weight"], dim=1) @ normalize(state, dim=0)'),
}
"""Logits of a task's head."""
_OF_THE_MODEL = ("tuning", "dtype", "quantization", "template")
"""Keys of a recipe's model that say how it was made; beside those of its adapter."""
_SLOT = "\ue000"
_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+!|~<>&$-])")


@dataclass(frozen=True, slots=True)
class Handed:
    """How the model is handed back.

    Attributes:
        base: Name of the hub or absolute path; `base` where the folder of that name lies beside the card.
        revision: Commit of a hub model.
        dtype: Number format that it was measured in.
        quantization: Of the base's linear layers (`model.quantization`).
        has_template: Whether its tokenizer renders the prompts of the run.
        label: What the run is called.
        kind: Of the part that stands on the base (`models/kinds.py`); None: there is none.
        versions: Installed packages.
        note: Where the base comes from, if that needs saying.
        answerer: What chooses among several models; None: there is one.
        is_base: Whether nothing of the language model was tuned.
        heads: What `heads.json` says of its classification heads; None: it answers in words.
        knows_task: Whether an answer was chosen among the classes of a row's task alone.
    """

    base: str
    revision: str | None
    dtype: str
    has_template: bool
    label: str
    kind: str | None
    versions: Mapping[str, str]
    note: str | None = None
    answerer: Answerer | None = None
    is_base: bool = False
    heads: Mapping[str, Any] | None = None
    knows_task: bool = False
    quantization: str = "none"


def model_card(
    recipe: Recipe,
    stream: TaskStream,
    template: PromptTemplate,
    tokenizer: PreTrainedTokenizerBase,
    handed: Handed,
    matrix: Mapping[str, Any],
) -> str:
    """The text of the card."""
    is_adapter = handed.kind is not None
    base = "the base model that ships with everlearn" if handed.base == "base" else escaped(handed.base)
    kind = STORED[handed.kind].label if handed.kind else "fully tuned model"
    what, how = f"A {kind} of {base}", "It answers questions like those it was trained on."
    scored = f"greedy answers of at most {recipe.evaluation.max_new_tokens} tokens"
    if stream.scenario == "task_incremental":
        scored = "the likeliest of the classes of a row's task, each as a whole answer"
    if handed.heads:
        what = f"Classification heads over {base}" if handed.is_base else f"{what}, with classification heads"
        of_words = isinstance(template, WordTemplate)
        how = f"It names the class of {'words in ' if of_words else ''}texts like those it was trained on."
        scored = "the class of the greatest logit" + (" of the task's own head" if handed.knows_task else "")
        scored = f"F1 of entities of all types by then, tags by {scored}" if of_words else scored
    names = ", ".join(escaped(name) for name in matrix["trained_at"])
    parts = [
        f"# {escaped(recipe.name)}",
        f"{what}, taught {names} by everlearn ({escaped(handed.label)}). {how}",
        "## What it was taught",
        _scores(stream, matrix),
        f"Scores in per cent on held-out rows, {scored}. They say nothing about other uses.",
        "## How to load and ask it",
        _fenced("python", _code(recipe, template, tokenizer, handed)),
        _remarks(template, handed, is_adapter=is_adapter),
        "## How it was made",
        _fenced("yaml", _settings(recipe)),
        *([escaped(handed.note)] if handed.note else []),
        "everlearn {everlearn}, Transformers {transformers}, PEFT {peft}, PyTorch {torch}.".format(**handed.versions),
        "## Licence",
        f"Not known to everlearn: the terms of the base ({base}) apply, and those of the data.",
    ]
    return f"---\n{_front(recipe, handed)}---\n\n" + "\n\n".join(parts) + "\n"


def escaped(text: object) -> str:
    """Text that Markdown shows as it is, in one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(visible(text).split()))


def _front(recipe: Recipe, handed: Handed) -> str:
    import yaml

    is_adapter = handed.kind is not None
    front: dict[str, object] = {
        "library_name": "everlearn" if handed.kind == EXPERTS else "peft" if is_adapter else "transformers",
        "pipeline_tag": "text-classification" if handed.heads else "text-generation",
        "tags": ["everlearn", "continual-learning", *recipe.method.parts],
    }
    if handed.revision:
        front["base_model"] = handed.base
        if not handed.is_base:
            front["base_model_relation"] = "adapter" if is_adapter else "finetune"
    return str(yaml.safe_dump(front, sort_keys=False, allow_unicode=True))


def _scores(stream: TaskStream, matrix: Mapping[str, Any]) -> str:
    stages: Sequence[str] = matrix["stages"]
    head = "| stage | task | training rows | held-out rows | metric | base | just after training | at the end |"
    lines = [head, "| --- | --- | --- | --- | --- | --- | --- | --- |"]
    for name, index in matrix["trained_at"].items():
        task, column = stream[name], matrix["tasks"].index(name)
        row = min(index, len(stages)) - 1
        values = [matrix["base"][column], matrix["values"][row][column], matrix["values"][-1][column]]
        shown = ["" if value is None else f"{value:.1f}" for value in values]
        cells = [
            str(index),
            escaped(name),
            str(len(task.train)),
            str(len(task.evaluation)),
            escaped(task.metric),
            *shown,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _code(recipe: Recipe, template: PromptTemplate, tokenizer: PreTrainedTokenizerBase, handed: Handed) -> str:
    is_adapter, answerer = handed.kind is not None, handed.answerer
    base = 'f"{FOLDER}/base"' if handed.base == "base" else repr(handed.base)
    revision = f", revision={handed.revision!r}" if handed.revision else ""
    own = handed.kind == EXPERTS
    package, put = ("everlearn.models.experts", "put_experts") if own else ("peft", "PeftModel.from_pretrained")
    generates = is_adapter and not handed.heads
    quantized = handed.quantization != "none"
    base_in = f"{base}{revision}, dtype=torch.{handed.dtype}{', quantization_config=quantized' if quantized else ''}"
    formula = _FORMULAS[str(handed.heads["kind"])] if handed.heads else ""
    lines = [
        *(["import json", *(answerer.imports if answerer else ()), ""] if answerer or handed.heads else []),
        "import torch",
        *([f"from {package} import {put.partition('.')[0]}"] if is_adapter else []),
        *(
            ["from safetensors.torch import load_file", f"from torch.nn.functional import {formula.partition('(')[0]}"]
            if handed.heads
            else []
        ),
        f"from transformers import AutoModelForCausalLM, AutoTokenizer{', BitsAndBytesConfig' if quantized else ''}"
        f"{', GenerationConfig' if generates else ''}",
        "",
        'FOLDER = "."  # where this card lies',
        "tokenizer = AutoTokenizer.from_pretrained(FOLDER)",
        *(['routing = json.load(open(f"{FOLDER}/routing.json", encoding="utf-8"))'] if answerer else []),
    ]
    if quantized:
        settings = ", ".join(
            f"{key}={value!r}" for key, value in settings_of(handed.quantization, handed.dtype).items()
        )
        lines += [f"quantized = BitsAndBytesConfig({settings})"]
    if is_adapter:
        lines += [
            f"model = AutoModelForCausalLM.from_pretrained({base_in})",
            *(["model.generation_config = GenerationConfig.from_pretrained(FOLDER)"] if generates else []),
            f"model = {put}(model, FOLDER).eval()",
        ]
        if answerer:
            lines += [
                'for name, folder in routing["models"].items():',
                '    model.load_adapter(f"{FOLDER}/{folder}", adapter_name=name)',
                "model.eval()",
            ]
    elif answerer:
        whole = f'AutoModelForCausalLM.from_pretrained(f"{{FOLDER}}/{{folder}}", dtype=torch.{handed.dtype}).eval()'
        lines += ["models = {", f"    name: {whole}", '    for name, folder in routing["models"].items()', "}"]
    else:
        place = base_in if handed.is_base else f"FOLDER, dtype=torch.{handed.dtype}"
        lines += [f"model = AutoModelForCausalLM.from_pretrained({place}).eval()"]
    if handed.heads:
        asks_task = ", task" if handed.knows_task else ""
        lines += [
            'heads = json.load(open(f"{FOLDER}/heads/heads.json", encoding="utf-8"))["tasks"]',
            'tensors = load_file(f"{FOLDER}/heads/heads.safetensors")',
            "",
            "",
            *([] if isinstance(template, WordTemplate) else [f"def answer(question{asks_task}):"]),
        ]
    elif answerer:
        choice = f"chosen(routing, {answerer.asks})"
        lines += ["", "", *answerer.example.splitlines(), "", "", f"def answer(question, {answerer.asks}):"]
        lines += [f"    model.set_adapter({choice})" if is_adapter else f"    model = models[{choice}]"]
    else:
        lines += ["", "", "def answer(question):"]
    if isinstance(template, WordTemplate):
        return "\n".join([*lines, *_code_of_words(template, tokenizer, formula)])
    plain, slot = template, Instance("", _SLOT, "", "")
    if isinstance(template, WalkTemplate):
        plain, slot = template.inner, template.asked(slot)
    if handed.has_template:
        system = "".join(f'{{"role": "system", "content": {turn.content!r}}}, ' for turn in slot.history)
        asked = 'question + "\\n"' if slot.input != _SLOT else "question"
        lines += [
            f'    messages = [{system}{{"role": "user", "content": {asked}}}]',
            "    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)",
            '    ids = torch.tensor([prompt["input_ids"]])',
        ]
    else:
        from everlearn.data.prompts import bos_ids

        before, *after = plain.text(slot).split(_SLOT)
        text = f"{before!r} + question + {after[0]!r}"
        if len(after) > 1:  # parts of the question stand in several places
            frame = f"{{{{ {getattr(plain, 'handed_frame', '')} }}}}"
            text = f"Template({frame!r}).render(message={{'content': question}}, told={{}})"
            lines.append("    from jinja2 import Template\n")
        lines += [
            f"    text = {text}",
            "    ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)",
            f"    ids = torch.tensor([{bos_ids(tokenizer)} + ids])",
        ]
    if handed.heads:
        of_all = "range(len(heads))"
        of_task = '[at for at, head in enumerate(heads) if head["name"] == task]'
        return "\n".join(
            [
                *lines,
                "    with torch.inference_mode():",
                "        state = model(ids, output_hidden_states=True).hidden_states[-1][0, -1].float()",
                f"    asked = {of_task if handed.knows_task else of_all}",
                f"    logits = torch.cat([{formula} for at in asked])",
                '    return [name for at in asked for name in heads[at]["classes"]][int(logits.argmax())]',
            ]
        )
    if isinstance(template, WalkTemplate):
        opening = framed_tags([OPENING], tokenizer)
        lines.append(f"    ids = torch.cat([ids, torch.tensor([{opening}])], dim=1)  # {OPENING}")
    lines += [
        "    with torch.inference_mode():",
        "        written = model.generate(ids, attention_mask=torch.ones_like(ids))[0, ids.shape[1] :]",
        "    ends = model.generation_config.eos_token_id",
        "    written = [token for token in written.tolist() if token not in ends]",
        "    text = tokenizer.decode(written, skip_special_tokens=True)"
        if isinstance(template, WalkTemplate)
        else "    return tokenizer.decode(written, skip_special_tokens=True)",
    ]
    if isinstance(template, WalkTemplate):
        lines.append("    return text.rpartition('<answer>')[2].partition('</answer>')[0].strip()")
    return "\n".join(lines)


def _code_of_words(template: WordTemplate, tokenizer: PreTrainedTokenizerBase, formula: str) -> list[str]:
    """What tags the words of a sentence."""
    from everlearn.data.prompts import bos_ids

    before = bos_ids(tokenizer)
    return [
        "def answer(words):",
        '    text = " ".join(words)',
        "    read = tokenizer(",
        "        text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True",
        "    )",
        f'    ids = torch.tensor([{before} + read["input_ids"]])',
        "    with torch.inference_mode():",
        f"        states = model(ids, output_hidden_states=True).hidden_states[-1][0, {len(before)}:].float()",
        '    names = [name for head in heads for name in head["classes"]]',
        "    tags, begin = [], 0",
        "    for word in words:",
        "        end = begin + len(word)",
        '        own = [at for at, (b, e) in enumerate(read["offset_mapping"]) if b < end and e > begin]',
        "        begin = end + 1",
        "        if not own:",
        f'            tags.append("{OUTSIDE}")',
        "            continue",
        f"        state = states[own[{0 if template.name == FIRST else -1}]]",
        f"        logits = torch.cat([{formula} for at in range(len(heads))])",
        "        tags.append(names[int(logits.argmax())])",
        "    return tags",
    ]


def _remarks(template: PromptTemplate, handed: Handed, *, is_adapter: bool) -> str:
    measured = "" if handed.knows_task else " as they were measured"
    remarks_on_answers = [
        f"`generation_config.json` holds the tokens that end an answer, and asks for greedy answers{measured}, "
        "whatever the base's own settings are."
    ]
    if handed.knows_task:
        remarks_on_answers.append(
            "The code above writes freely, and what was measured is a choice among the classes of a row's task: what "
            "is written may be another class, or none."
        )
    if handed.heads:
        token = "the last token of the prompt"
        if isinstance(template, WordTemplate):
            token = f"the {'first' if template.name == FIRST else 'last'} token of each word"
        scope = "the head of the task that is named" if handed.knows_task else "the heads of all tasks"
        remarks_on_answers = [
            f"An answer is the class of the greatest logit of {scope}, over the last hidden state at {token}. "
            "`heads/heads.json` names tasks and classes in the order of the columns; `heads/heads.safetensors` holds "
            "the weights, `0.weight` those of the first task."
        ]
    remarks = [
        "A row is a sentence of words."
        if isinstance(template, WordTemplate)
        else "A question is a row's instruction, and `Source sentence: ` with its input on the next line."
        if isinstance(template, WalkTemplate) and template.published
        else "A question is a row's instruction and input with a blank line between, where it has both.",
        f"Prompts are those of the template {template.name}"
        + (", which the tokenizer's chat template renders." if handed.has_template else " (the text above)."),
        *remarks_on_answers,
        f"It was measured in {handed.dtype}: another number format can change answers, and so can rounding where two "
        f"{'classes' if handed.heads else 'words'} are as likely as each other.",
    ]
    if handed.answerer:
        what, asks = "adapters" if is_adapter else "models", handed.answerer.asks
        remarks.append(
            f"A row is answered by one of the {len(handed.answerer.models)} {what} in `routed`, chosen by its {asks}; "
            f"`routing.json` names them and holds what they are chosen by. What lies beside this card is the one that "
            "was trained last."
        )
        if handed.answerer.about:
            remarks.append(handed.answerer.about)
    if handed.quantization != "none":
        remarks.append(
            f"It was trained and measured on a base quantized to {handed.quantization} by bitsandbytes, as above: on "
            "the whole base its answers can differ, and merging it into quantized weights rounds it away in part. "
            "On a processor with AVX512-BF16 bitsandbytes repacks four-bit weights in bfloat16, as here it did not."
        )
    if handed.kind == EXPERTS:
        remarks.append("PEFT does not know adapters of this kind and refuses the folder: everlearn loads it.")
    elif is_adapter and not handed.heads:
        remarks.append(
            "`AutoPeftModelForCausalLM` loads the adapter too, but takes the base's `generation_config.json` and not "
            "this one: give it to `model.get_base_model()`, or answers do not end where they should."
        )
    if (is_adapter or handed.is_base) and handed.base == "base":
        moved = (
            " When this folder is moved, load it as above: `adapter_config.json` names the place where it was made."
        )
        remarks.append(
            f"The base model ships with everlearn; a copy is in the folder `base`.{moved if is_adapter else ''}"
        )
    elif (is_adapter or handed.is_base) and not handed.revision:
        remarks.append("The base is a local folder: on another machine, give its place there.")
    return "\n".join(f"- {remark}" for remark in remarks)


def _settings(recipe: Recipe) -> str:
    import yaml

    whole = recipe.model_dump(mode="json")
    model = {key: value for key, value in recipe.model.hashed(exclude=("lora",)).items() if key in _OF_THE_MODEL}
    if recipe.model.tuning == "lora":
        model["lora"] = whole["model"]["lora"]
    kept = {"method": whole["method"], "model": model, "training": whole["training"], "seed": recipe.seed}
    return str(yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)).rstrip()


def _fenced(language: str, code: str) -> str:
    fence = "`" * max(3, *(len(ticks) + 1 for ticks in re.findall("`+", code)), 0)
    return f"{fence}{language}\n{code}\n{fence}"
