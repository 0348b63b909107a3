#!/usr/bin/env bash
# The experimental journey: the four historic configurations in the order in which they happened, and real jobs' logs
# where $LOGS names a folder of them (NAME.out and NAME.err), told by the report of results/journey.
set -euo pipefail
LOGS=${LOGS:-}
results=results/journey
flags=(--profile profiles/local --configfile config/journey.yaml --quiet rules --)
repeat=0
if [ -n "$LOGS" ]; then
  for out in "$LOGS"/*.out; do
    if [ ! -f "$out" ]; then
      echo "error: LOGS=$LOGS: no file *.out in it; expected NAME.out and NAME.err of each job" >&2
      exit 2
    fi
    logs=("$out")
    if [ -f "${out%.out}.err" ]; then logs+=("${out%.out}.err"); fi
    dist3dgs import "${logs[@]}" --scene "${LOGS_SCENE:-bicycle}" --strategy "${LOGS_STRATEGY:-nerfstudio}" \
      --layout "${LOGS_LAYOUT:-n1g4}" --repeat "r$repeat" --results "$results"
    repeat=$((repeat + 1))
  done
else
  echo "journey: no logs of real jobs (LOGS=folder names them); the replay alone is told"
fi
for point in replicated/n1g1 unused/n1g4 independent/n1g4 replicated/n1g4 extended/n1g1; do
  snakemake "${flags[@]}" "$results/journey/$point/r0/record.json"
done
snakemake "${flags[@]}" report
echo "journey: open $PWD/$results/report/report.html"
