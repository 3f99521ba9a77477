#!/usr/bin/env bash
# Snakemake deletes the log of an attempt that failed before it tries again.
#
# Library: snakemake 9.15.0, local executor.
# Guess: a rule's log stays where it is when a job fails; outputs are what is deleted.
# Seen: it stays after the last attempt. Before each retry it is deleted like an output. If the last
#   attempt fails without a word (killed, or stopped by what the first had found), Snakemake points
#   to a log that is empty, and what the first attempt wrote there is gone.
# For users: with retries, copy what matters out of the log when a job fails, or append to a file that
#   is not declared.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check snakemake==9.15.0
cat > "$folder/Snakefile" <<'SNAKEFILE'
rule work:
    output: "out.txt"
    log: "work.log"
    resources: attempt=lambda wildcards, attempt: attempt
    shell: "if [ {resources.attempt} -eq 1 ]; then echo the reason > {log}; fi; exit 1"
SNAKEFILE
cd "$folder"
for retries in 0 1; do
    rm -f work.log
    if venv/bin/snakemake --cores 1 --retries "$retries" > said 2>&1; then exit 1; fi
    echo "retries: $retries, the log: '$(cat work.log)'"
    grep -q "log: work.log (check log file(s) for error details)" said
    wanted=$([ "$retries" -eq 0 ] && echo "the reason" || true)
    [ "$(cat work.log)" = "$wanted" ] || { echo "changed"; exit 1; }
done
