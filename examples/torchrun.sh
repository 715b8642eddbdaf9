#!/bin/bash
# torchrun under which a training run can be told to save and leave: SIGTERM or SIGUSR1 to this script goes to its
# processes alone; they save and leave with exit code 0, and so does this.
#
#   bash examples/torchrun.sh --nproc_per_node 8 -m nitrodistill train --config recipe.yaml
#
# torchrun by itself passes SIGTERM on, kills its processes 30 s later and ends with 1; SIGUSR1 it does not survive.
set -uo pipefail
export PET_SIGNALS_TO_HANDLE=SIGINT  # torch's that do not know it handle SIGTERM all the same
(trap '' USR1 TERM; exec torchrun "$@") &  # deaf, for schedulers that signal every process of a job
agent=$!

signals=0
pass_on() {  # again and again, because processes that just start are deaf as well
  signals=$((signals + 1))
  while kill -0 "$agent" 2> /dev/null; do pkill -USR1 -P "$agent"; sleep 1; done &
}
trap pass_on USR1 TERM
while before=$signals; wait "$agent"; code=$?; [ "$signals" -ne "$before" ]; do :; done  # a signal ends `wait`
exit "$code"
