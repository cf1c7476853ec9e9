"""Where the programs of the pipeline leave their per-image CSVs, and what to run when one is not there yet."""

from pathlib import Path

from dfbench.errors import InputError
from dfbench.paths import REPOSITORY, RESULTS

AGENT_CSVS = {
    RESULTS / "qwen2.5.csv": "cd qwen2.5 && python evaluate_logit.py",
    RESULTS / "internvl2.5.csv": "cd internvl2.5 && sh shell/eval_deepfake.sh",
    RESULTS / "internvl3.csv": "cd internvl3 && sh shell/eval_deepfake.sh",
}
"""The three agents' files, and the command that writes each."""

MOA_DF_CSV = RESULTS / "moa_df.csv"


def agent_csvs(*, partial: bool = False) -> list[Path]:
    """The three agents' files. Raises InputError, naming the command to run, where one is missing.

    With `partial` the missing ones are left out, and only all three missing is an error.
    """
    missing = [path for path in AGENT_CSVS if not path.exists()]
    if missing and not (partial and len(missing) < len(AGENT_CSVS)):
        raise InputError(
            missing[0].relative_to(REPOSITORY),
            found="no such file",
            expected="the agent's answers",
            remedy=f"run `{AGENT_CSVS[missing[0]]}` first, or name the CSVs to read",
        )
    return [path for path in AGENT_CSVS if path not in missing]


def detector_csvs(*, partial: bool = False) -> list[Path]:
    """The agents' files, then MoA-DF's where there is one."""
    return agent_csvs(partial=partial) + ([MOA_DF_CSV] if MOA_DF_CSV.exists() else [])
