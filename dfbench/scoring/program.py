"""The program behind every `evaluate_logit.py`: the folder names its agent, everything else is here."""

from dataclasses import replace
from pathlib import Path

from dfbench import cli
from dfbench.errors import InputError
from dfbench.models.checkpoints import find_weights
from dfbench.models.registry import AGENTS, ENGINES, FAMILIES
from dfbench.paths import REPOSITORY
from dfbench.scoring.config import DTYPES, PRECISIONS, ScoringConfig, check_inputs


def main(agent: str, description: str | None) -> None:
    """Parse the command line, score, and print accuracy by source and where the files are.

    agent: a key of `dfbench.models.registry.AGENTS`.
    """
    config = parse(agent, description)
    check_inputs(config)  # `score` does so too, but only after the seconds that importing torch and transformers takes
    from dfbench.evaluation.tables import accuracy_lines
    from dfbench.predictions.reader import read_detector
    from dfbench.predictions.schema import errors_path, warnings_path
    from dfbench.scoring.run import score

    result = score(config)
    if result is None:  # the first of torchrun's processes reports
        return
    if result.rows:
        for line in accuracy_lines([read_detector(config.output_csv)]):
            print(line)
    print(f"{result.rows} images in {config.output_csv}")
    if result.num_scored:
        waited = f"{result.wait_share:.0%} of the time spent waiting for images"
        print(f"{result.num_scored} of them now, {result.images_per_second:.1f} images/s, {waited}")
    elif result.rows:
        print("all of them were there already")
    if result.warnings:
        print(f"{result.warnings} images with a warning, such as a truncated file: {warnings_path(config.output_csv)}")
    if result.errors:
        found = f"{errors_path(config.output_csv)}: {result.errors} images without an answer, each with its reason"
        if result.not_finite:
            raise InputError(
                f"{found}; for {result.not_finite} of them the model's logits are NaN or infinite. Look at its "
                f"weights, or --overwrite with another --dtype."
            )
        raise InputError(f"{found}. Mend the images and repeat the command.")


def parse(agent: str, description: str | None) -> ScoringConfig:
    """The run that the command line asks for. Where it names no weights, the newest trained ones are looked for.

    Raises InputError where there are none, and OptionError where options do not go together.
    """
    record = AGENTS[agent]
    protocols = FAMILIES[record.family].protocols
    parser = cli.ArgumentParser(description)
    add = parser.add_argument
    model = "checkpoint folder; without it, the newest merged one, or else the newest adapter"
    add("--model_path", dest="model", type=Path, help=model)
    any_size = f"take other sizes of the family {record.family} than {record.title}, too"
    add("--any_size", action="store_true", help=any_size)
    add("--adapter", type=Path, help="LoRA adapter folder, scored unmerged on top of --model_path")
    add(
        "--train_dir",
        type=Path,
        default=record.folder / "output_ckpt",
        help="folder of training's results, searched where --model_path is not named",
    )
    annotations = record.folder / record.test_annotations
    add("--dataset_path", dest="annotations", type=Path, default=annotations, help="annotation file, any shape")
    add("--image_root", type=Path, default=REPOSITORY, help="folder that the annotated image paths start from")
    add("--output_csv", type=Path, default=record.csv, help="per-image CSV to write")
    add("--batch_size", type=cli.positive_int, help="images of a batch at most; default: 8 on a CPU, no limit on a GPU")
    add("--token_budget", type=_budget, default="auto", help="tokens of a batch at most, or auto")
    add("--limit", type=cli.positive_int, help="score the first N images only, for a quick look")
    add("--sources", nargs="+", metavar="SOURCE", help="score these sources only")
    add(
        "--only_undecided",
        nargs="+",
        type=Path,
        default=[],
        metavar="CSV",
        help="per-image CSVs of all other agents: score only images whose MoA-DF decision they leave open",
    )
    add("--device", help="cuda, cuda:N or cpu; default: cuda where there is a GPU")
    add("--dtype", choices=DTYPES, help="default: bfloat16 on a GPU, float32 on a CPU")
    workers = "processes that decode images; default: one a core up to 16 on a GPU, 0 on a CPU"
    add("--workers", type=cli.natural_int, help=workers)
    if protocols:
        add("--protocol", choices=protocols, default=protocols[0], help="prompt and image protocol")
    engine = "packed: the fast path; transformers: plain forward passes; auto: packed where it knows the model"
    add("--engine", choices=ENGINES, default="auto", help=engine)
    add("--precision", choices=PRECISIONS, default="full", help="fp8: 8-bit products, faster and less exact (GPU)")
    add("--eager", action="store_true", help="do not compile the layers (GPU; the first batch comes sooner)")
    add("--strict_images", action="store_true", help="a truncated image is an error instead of a warning")
    add("--overwrite", action="store_true", help="start over instead of resuming")
    add("--quiet", action="store_true", help="no progress bar")
    options = vars(parser.parse_args())
    trained = options.pop("train_dir")
    config = ScoringConfig(agent=agent, **options)  # refuses wrong options before weights are looked for
    model, adapter = find_weights(config.model, config.adapter, trained)
    return replace(config, model=model, adapter=adapter)


def _budget(text: str) -> int | None:
    return None if text == "auto" else cli.positive_int(text)
