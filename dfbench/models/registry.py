"""The model families that can be scored and trained, and MoA-DF's agents: the one place that lists them.

A family is one module with one `Family` record here; an agent is one `Agent` record and one folder with its shells.
Everything else (evaluators, training, fusion's defaults, preparation's targets, the demo) follows from the records.
Importing this module is quick: a family's classes are imported when a checkpoint of it is loaded.
"""

import logging
from dataclasses import dataclass
from importlib import import_module
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dfbench.errors import InputError, shorten
from dfbench.models.checkpoints import read_config, usable_checkpoint
from dfbench.paths import REPOSITORY, RESULTS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from dfbench.models.base import Engine, Prompt, Scorer
    from dfbench.models.packed.scorer import PackedScorer

logger = logging.getLogger(__name__)

ENGINES = ("auto", "packed", "transformers")
"""auto: the packed layers where they compute all of the model, or else transformers' own forward pass."""


@dataclass(frozen=True)
class Family:
    """What the programs have to know of a model family.

    name: also the `model_type` that ms-swift knows it by. model_types: those of config.json that belong to it.
    prompt: its class, as "module:Class".
    template: for training, ms-swift's; `dfbench_...` is made from `prompt` (see `dfbench.training.swift_plugin`).
    protocols: prompt and image protocols to choose from, the default first; none where there is but one.
    scorer: the class of its packed scorer; None where it is scored by transformers' forward pass alone.
    original_types: `model_type` of checkpoints in an original format, which are converted first.
    max_aspect_ratio: images whose longer side is more than this many times the shorter one are refused.
    """

    name: str
    model_types: tuple[str, ...]
    prompt: str
    template: str
    protocols: tuple[str, ...] = ()
    scorer: str | None = None
    original_types: tuple[str, ...] = ()
    max_aspect_ratio: float = inf


class Size(NamedTuple):
    """A language model's hidden size and number of layers, by which agents of one family are told apart."""

    hidden: int
    layers: int


@dataclass(frozen=True)
class TinyModel:
    """An agent's part in the demo: a tiny checkpoint of its architecture, and the training that makes a detector of it.

    make: "module:function", a seed -> (model, processor). size: of what it makes.
    """

    make: str
    learning_rate: float
    steps: int
    size: Size | None = None


@dataclass(frozen=True)
class Agent:
    """One of the detectors that MoA-DF fuses: a model folder of the repository.

    name: of its folder and its CSV. title: of the model, for people. hub_id: of the released weights.
    train_annotations, test_annotations: what its shells read where nothing is named, relative to its folder.
    evaluate, train, merge: its shells, relative to its folder; the first one writes its CSV.
    size: of the released weights; None for an agent that takes any size of its family.
    demo: its tiny model; an agent without one is left out of the demo.
    """

    name: str
    title: str
    family: str
    hub_id: str
    train_annotations: str
    test_annotations: str
    evaluate: str
    train: str = "train.sh"
    merge: str = "merge_lora.sh"
    size: Size | None = None
    demo: TinyModel | None = None

    @property
    def folder(self) -> Path:
        return REPOSITORY / self.name

    @property
    def csv(self) -> Path:
        return RESULTS / f"{self.name}.csv"

    @property
    def evaluate_command(self) -> str:
        """What a user types in the repository to get the CSV."""
        return f"cd {self.name} && sh {self.evaluate}"

    @property
    def sizes(self) -> list[Size]:
        """Of the checkpoints that are this agent's."""
        return [size for size in (self.size, self.demo and self.demo.size) if size]


FAMILIES: dict[str, Family] = {}
AGENTS: dict[str, Agent] = {}


def register(record: Family | Agent) -> None:
    """Make a family or an agent known to every program. Raises ValueError where its name is taken."""
    known = FAMILIES if isinstance(record, Family) else AGENTS
    if record.name in known:
        raise ValueError(f"{record.name} is registered already")
    known[record.name] = record


register(
    Family(
        "qwen2_5_vl",
        ("qwen2_5_vl",),
        prompt="dfbench.models.qwen2_5_vl:QwenPrompt",
        scorer="dfbench.models.qwen2_5_vl:QwenScorer",
        template="qwen2_5_vl",
        max_aspect_ratio=200,  # `smart_resize` of its processor
    )
)
register(
    Family(
        "internvl",
        ("internvl",),
        prompt="dfbench.models.internvl:InternVLPrompt",
        scorer="dfbench.models.internvl:InternVLScorer",
        template="dfbench_internvl",
        protocols=("upstream", "native"),
        original_types=("internvl_chat",),
    )
)
register(
    Agent(
        "qwen2.5",
        "Qwen2.5-VL-7B",
        "qwen2_5_vl",
        "Qwen/Qwen2.5-VL-7B-Instruct",
        train_annotations="datasets/img_train_shuffled.json",
        test_annotations="datasets/img_test.json",
        evaluate="eval.sh",
        size=Size(3584, 28),
        demo=TinyModel("dfbench.demo.tiny_models:make_qwen", learning_rate=3e-3, steps=240, size=Size(96, 2)),
    )
)
register(
    Agent(
        "internvl2.5",
        "InternVL2.5-8B",
        "internvl",
        "OpenGVLab/InternVL2_5-8B",
        train_annotations="data/img_train_shuffled.jsonl",
        test_annotations="data/img_test.jsonl",
        evaluate="shell/eval_deepfake.sh",
        train="shell/train_deepfake.sh",
        merge="shell/merge_lora.sh",
        size=Size(4096, 32),
        demo=TinyModel("dfbench.demo.tiny_models:make_internvl2_5", learning_rate=2e-3, steps=180, size=Size(64, 2)),
    )
)
register(
    Agent(
        "internvl3",
        "InternVL3-9B",
        "internvl",
        "OpenGVLab/InternVL3-9B",
        train_annotations="data/img_train_shuffled.jsonl",
        test_annotations="data/img_test.jsonl",
        evaluate="shell/eval_deepfake.sh",
        train="shell/train_deepfake.sh",
        merge="shell/merge_lora.sh",
        size=Size(4096, 48),
        demo=TinyModel("dfbench.demo.tiny_models:make_internvl3", learning_rate=2e-3, steps=180, size=Size(96, 2)),
    )
)

MOA_DF_CSV = RESULTS / "moa_df.csv"


def missing_agents() -> list[Agent]:
    """The agents whose CSV is not there yet."""
    return [agent for agent in AGENTS.values() if not agent.csv.exists()]


def agent_csvs(*, partial: bool = False) -> list[Path]:
    """The agents' files. Raises InputError, naming the command to run, where one is missing.

    With `partial` the missing ones are left out, and only all of them missing is an error.
    """
    missing = missing_agents()
    if missing and not (partial and len(missing) < len(AGENTS)):
        first = missing[0]
        others = "" if len(missing) == len(AGENTS) else ", or fuse those that are there with --partial"
        raise InputError(
            f"{first.csv.relative_to(REPOSITORY)}: no such file. Run `{first.evaluate_command}` first, "
            f"or name the CSVs to read{others}."
        )
    return [agent.csv for agent in AGENTS.values() if agent not in missing]


def detector_csvs() -> list[Path]:
    """The files of the agents and of MoA-DF, as far as they are there. Raises InputError where none is."""
    moa_df = [MOA_DF_CSV] if MOA_DF_CSV.exists() else []
    return moa_df if moa_df and len(missing_agents()) == len(AGENTS) else agent_csvs(partial=True) + moa_df


def family_of(model_type: str | None) -> Family | None:
    """The family of a config's `model_type`, that of an original checkpoint included; None for any other."""
    matching = (family for family in FAMILIES.values() if model_type in family.model_types + family.original_types)
    return next(matching, None)


def check_checkpoint(checkpoint: Path, agent: str | None = None, *, any_size: bool = False) -> Family:
    """The family of a checkpoint folder, by its config.json alone. Raises InputError where there is none.

    agent: a key of AGENTS, for checkpoints of this one alone: another's under its name would count twice in MoA-DF.
    any_size: other sizes of its family than the released one, too.
    """
    config = read_config(checkpoint)
    family = family_of(config.get("model_type"))
    if family is None:
        known = " or ".join(name for each in FAMILIES.values() for name in each.model_types)
        raise InputError(
            f"{checkpoint / 'config.json'}: model_type is {shorten(config.get('model_type'))}; expected {known}. "
            f"Name a checkpoint of such a model."
        )
    if agent:
        _check_agent(checkpoint, config, family, AGENTS[agent], any_size)
    return family


def _check_agent(checkpoint: Path, config: dict[str, Any], family: Family, agent: Agent, any_size: bool) -> None:
    if family.name != agent.family:
        raise InputError(
            f"{checkpoint}: a checkpoint of the family {family.name}, not {agent.family}. "
            f"Correct --model_path, or use that model's own folder."
        )
    # An original InternVL has them in llm_config, and the released Qwen2.5-VL beside all other values.
    text = next((config[key] for key in ("text_config", "llm_config") if isinstance(config.get(key), dict)), config)
    size = (text.get("hidden_size"), text.get("num_hidden_layers"))
    if agent.size is None or size in agent.sizes:
        return
    found = f"{checkpoint}: its language model has hidden size {size[0]} and {size[1]} layers"
    if others := [other for other in AGENTS.values() if other.family == family.name and size in other.sizes]:
        raise InputError(
            f"{found}: it is {others[0].title} (or the demo's tiny one), not {agent.title}. Correct --model_path, or "
            f"score it in the folder {others[0].name}."
        )
    if not any_size:
        raise InputError(
            f"{found}; those of {agent.title} are {agent.size.hidden} and {agent.size.layers}. Correct --model_path, "
            f"or take another size of this family with --any_size."
        )


def _load(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


def load_prompt(checkpoint: Path, protocol: str | None = None, *, engine: str = "auto") -> "Prompt":
    """The CPU side of a checkpoint folder, by its config's `model_type`, for the engine that will score it.

    protocol: None for the family's first. engine: one of ENGINES.
    Raises InputError for any other family, where the tokenizer or the image processor is missing or broken, and where
    `choose_engine` does.
    """
    from PIL import Image

    from dfbench.models.base import blame

    checkpoint = usable_checkpoint(checkpoint)
    family = check_checkpoint(checkpoint)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if not (checkpoint / name).is_file():  # transformers would guess
            raise InputError(f"{checkpoint}: no {name} in this folder. Download the whole folder again.")
    options = (protocol or family.protocols[0],) if family.protocols else ()
    what = "its config, tokenizer or image processor cannot be used"
    with blame(checkpoint, what, "Download the whole folder again."):
        prompt = _load(family.prompt)(checkpoint, *options)
        prompt = prompt.for_engine(choose_engine(prompt, engine))
        prompt.collate([prompt.prepare("<image>?", Image.new("RGB", (64, 64)))])  # what shows in use alone
    return prompt


def choose_engine(prompt: "Prompt", engine: str) -> "Engine":
    """The engine for a checkpoint, by one of ENGINES. Says in a line where and why "auto" is not the packed one.

    Raises InputError where the packed one is asked for and does not compute all of the model.
    """
    if engine == "transformers":
        return engine
    scorer = FAMILIES[prompt.family].scorer
    if scorer is None:
        reason = f"the family {prompt.family}"
    else:
        from transformers import AutoConfig

        reason = _load(scorer).unsupported(AutoConfig.from_pretrained(prompt.checkpoint))
    if reason is None:
        return "packed"
    if engine == "packed":
        raise InputError(f"{prompt.checkpoint}: the packed engine does not know {reason}. Use --engine transformers.")
    logger.warning("%s: scored by transformers, slower: the packed engine does not know %s", prompt.checkpoint, reason)
    return "transformers"


def load_scorer(
    prompt: "Prompt",
    *,
    device: str,
    dtype: str,
    adapter: Path | None = None,
    compiled: bool = False,
    fp8: bool = False,
    engine: str = "auto",
) -> "Scorer":
    """The GPU side of the same checkpoint, weights loaded.

    compiled, fp8: see `PackedScorer`; transformers' forward pass is never compiled.
    engine: one of ENGINES; "auto" is the one that the prompt was loaded for. The scorer's own `prompt` collates for it.
    Raises InputError as `load_model` does, where the engine cannot do what is asked, and where the GPU's memory does
    not hold the weights.
    """
    import torch

    from dfbench.models.base import blame
    from dfbench.models.hf import TransformersScorer, load_model

    prompt = prompt.for_engine(prompt.engine if engine == "auto" else choose_engine(prompt, engine))
    if fp8 and prompt.engine == "transformers":
        raise InputError(f"{prompt.checkpoint}: only the packed engine has 8-bit products. Leave --precision fp8 out.")
    try:
        model = load_model(prompt.checkpoint, device=device, dtype=dtype, adapter=adapter)
        if prompt.engine == "transformers":
            return TransformersScorer(model, prompt)
        with blame(prompt.checkpoint, "its config cannot be used", "Download the whole folder again."):
            scorer = scorer_of(model, prompt, compiled=compiled)
            if fp8:
                scorer.quantize()
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"{prompt.checkpoint}: not enough GPU memory for its weights in {dtype} ({shorten(str(error), 100)}). Free "
            f"memory on the GPU, or use a larger one, and repeat the command."
        ) from None
    return scorer


def scorer_of(model: "PreTrainedModel", prompt: "Prompt", *, compiled: bool = False) -> "PackedScorer":
    """The packed scorer of a model that is loaded already. It fuses the model's layers in place."""
    return _load(FAMILIES[prompt.family].scorer)(model, prompt, compiled=compiled)
