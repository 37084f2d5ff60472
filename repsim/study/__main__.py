"""`torchrun -m repsim.study FOLDER STAGE MACHINE SETTINGS`: one stage by several processes."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

from repsim import distributed
from repsim.progress import Silent, reporter
from repsim.study.graph import stages_of
from repsim.study.run import run_stage
from repsim.study.stage import Records
from repsim.study.study import Machine, study_of


def main(arguments: list[str]) -> None:
    """Run the stage; every process makes the same calls, the first one writes."""
    folder, name, text, settings = Path(arguments[0]), *arguments[1:4]
    content = json.loads(text)
    content["data_root"] = content["data_root"] and Path(content["data_root"])
    content["checkpoints"] = tuple(Path(path) for path in content["checkpoints"])
    machine = Machine(**content)
    with distributed.start(machine.device) as device:
        progress = reporter() if distributed.is_main() else Silent()
        study = study_of(folder, replace(machine, device=device), progress, file=settings)
        records = Records(folder, stages_of(study))
        run_stage(study, records.stages[name], records)


if __name__ == "__main__":
    main(sys.argv[1:])
