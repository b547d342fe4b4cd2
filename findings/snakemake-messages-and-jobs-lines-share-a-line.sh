#!/usr/bin/env bash
# Snakemake 9.27.1 writes a message and the newline behind it by two calls. Jobs have the same standard
# error. A line that a job writes between the two calls continues the message's line, such as
# "Select jobs to execute...error: disk full". Who reads Snakemake's output line by line, or searches it
# for lines that begin with "error", misses such a line, and an empty line follows. It happens most at
# the message that a job has failed, because the job's last words come at that moment.
# Here one job writes "mark" lines as long as sixty others run: some of the lines do not begin with it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet snakemake==9.27.1
cat >"$folder/Snakefile" <<'RULES'
rule all:
    input:
        "loud",
        expand("quiet{n}", n=range(60)),


rule loud:
    output:
        "loud"
    priority: 1
    shell:
        "while [ $(ls | grep -c quiet) -lt 60 ]; do"
        " for n in $(seq 5000); do echo mark >&2; done; done; touch {output}"


rule quiet:
    output:
        "quiet{n}"
    shell:
        "touch {output}"
RULES
cd "$folder"
torn=0
for _ in 1 2 3; do
    rm -f loud quiet*
    venv/bin/snakemake --cores 2 2>output.txt
    lines=$(grep -c mark output.txt)
    torn=$((torn + $(grep mark output.txt | grep -vc '^mark$' || true)))
done
echo "snakemake $(venv/bin/snakemake --version): $torn of three times about $lines lines of the job do not begin with what it wrote, for example:"
grep mark output.txt | grep -v '^mark$' | head -n 3 || true
[ "$torn" -gt 0 ]
