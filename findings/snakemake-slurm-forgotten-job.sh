#!/usr/bin/env bash
# Snakemake's SLURM plugin waits without end for a job that SLURM no longer knows, also after SIGTERM.
#
# Libraries: snakemake 9.15.0, snakemake-executor-plugin-slurm 2.8.0, -jobstep 0.6.1.
# Guess: a job that squeue does not list has failed or is over, after some tries (--slurm-status-attempts)
#   at the latest; and SIGTERM ends Snakemake.
# Seen: such a job counts as one that is not listed yet, however often squeue is asked, and the tries are
#   those of a command that fails. SIGTERM lets running jobs end first, and this one never ends. SIGINT
#   (Ctrl-C) ends Snakemake when it would next ask, at most 3 minutes later; the folder is unlocked.
# When: slurmctld 22.05 that is killed less than 5 seconds after it accepted a job, and started again,
#   may not have saved it. A job that ended longer than MinJobAge ago is not listed either.
# For users: if squeue --me is empty and Snakemake waits, press Ctrl-C and type the same command again.
#
# It runs without a cluster: sbatch and squeue are scripts that say what SLURM's would, for two minutes.
set -euo pipefail
set -m # or a process in the background would not hear SIGINT
folder=$(mktemp -d)
process=
trap '[ -z "$process" ] || kill -KILL "$process" 2> /dev/null || true; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check snakemake==9.15.0 \
    snakemake-executor-plugin-slurm==2.8.0 snakemake-executor-plugin-slurm-jobstep==0.6.1
mkdir "$folder/bin"
cd "$folder"
script() { printf '#!/bin/sh\n%s\n' "$2" > "bin/$1" && chmod +x "bin/$1"; }
script sbatch 'echo 1'
script squeue "echo asked >> $folder/asked"
script scancel "echo \"\$@\" >> $folder/cancelled"
script scontrol 'echo "MinJobAge = 300 sec"'
for name in sacct sacctmgr; do script "$name" 'exit 1'; done
export PATH="$folder/bin:$PATH"
printf 'rule work:\n    output: "out.txt"\n    shell: "touch {output}"\n' > Snakefile

asked() { [ -e asked ] && wc -l < asked || echo 0; }
changed() { echo "changed: $1" && cat said && exit 1; }
waits() { # until squeue was asked so many times
    for _ in $(seq 90); do
        kill -0 "$process" 2> /dev/null || changed "it ended"
        [ "$(asked)" -lt "$1" ] || return 0
        sleep 1
    done
    changed "squeue was asked $(asked) times, not $1"
}

venv/bin/snakemake --executor slurm --jobs 1 --slurm-status-command squeue --slurm-status-attempts 2 \
    --slurm-init-seconds-before-status-checks 1 --default-resources slurm_partition=main runtime=1 mem_mb=10 \
    > said 2>&1 &
process=$!
waits 4
echo "squeue listed no job $(asked) times, and Snakemake waits for it"
kill -TERM "$process"
waits 5
grep "Will exit after finishing" said || changed "SIGTERM"
echo "it waits after SIGTERM, too"
kill -INT "$process"
(sleep 90 && kill -KILL "$process") 2> /dev/null &
guard=$!
status=0
wait "$process" || status=$?
process=
kill -- -"$guard" 2> /dev/null || true # with its sleep
echo "after SIGINT: status $status, it cancelled job $(cat cancelled)"
[ "$status" -eq 1 ] && [ "$(cat cancelled)" = 1 ] || changed "SIGINT"
venv/bin/snakemake --cores 1 > said 2>&1 || changed "it is locked"
echo "the next command needs no --unlock"
