#!/usr/bin/env bash
# Snakemake's SLURM plugin takes SLURM_CONF from its jobs, whose srun then finds no cluster.
#
# Libraries: snakemake 9.15.0, snakemake-executor-plugin-slurm 2.8.0, -jobstep 0.6.1.
# Guess: a user whose SLURM is configured through SLURM_CONF, and whose sbatch therefore works, can run
#   jobs through the plugin.
# Seen: in each job the plugin starts srun with all variables SLURM_* removed that are not on a list,
#   SLURM_CONF among them. Where the configuration is not in SLURM's default place, jobs are
#   submitted, start, and die at once of "Could not establish a configuration source".
# For users: put an srun that sets SLURM_CONF before the real one in PATH.
#
# The job's side is run here without a cluster: srun is a script that prints what it sees.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check snakemake==9.15.0 \
    snakemake-executor-plugin-slurm==2.8.0 snakemake-executor-plugin-slurm-jobstep==0.6.1
mkdir "$folder/bin"
cat > "$folder/bin/srun" <<'SRUN'
#!/bin/sh
echo "srun sees SLURM_JOB_ID=${SLURM_JOB_ID-nothing} SLURM_CONF=${SLURM_CONF-nothing}"
exit 1
SRUN
chmod +x "$folder/bin/srun"
printf 'rule work:\n    output: "out.txt"\n    shell: "touch {output}"\n' > "$folder/Snakefile"
cd "$folder"
export PATH="$folder/bin:$PATH" SLURM_JOB_ID=1 SLURM_CONF=/opt/site/slurm.conf
venv/bin/snakemake --executor slurm-jobstep --jobs 1 > said 2>&1 || true
grep "srun sees" said
grep -q "srun sees SLURM_JOB_ID=1 SLURM_CONF=nothing" said || { echo "changed"; exit 1; }
