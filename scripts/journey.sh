#!/usr/bin/env bash
# The experimental journey: the four historic configurations in the order in which they happened, and the real jobs'
# logs where $LOGS has them, told by the report of results/journey.
set -euo pipefail
LOGS=${LOGS:-}
results=results/journey
flags=(--profile profiles/local --configfile config/journey.yaml --quiet rules --)
if [ -n "$LOGS" ] && [ -f "$LOGS/4gpu_9097883.out" ]; then
  repeat=0
  for job in 4gpu_9097883 4gpu_9104940; do
    dist3dgs import "$LOGS/$job.out" "$LOGS/$job.err" --scene bicycle --strategy nerfstudio --layout n1g4 \
      --repeat "r$repeat" --results "$results"
    repeat=$((repeat + 1))
  done
else
  echo "journey: no logs of the real jobs (LOGS=folder names them); the replay alone is told"
fi
for point in replicated/n1g1 unused/n1g4 independent/n1g4 replicated/n1g4 extended/n1g1; do
  snakemake "${flags[@]}" "$results/journey/$point/r0/record.json"
done
snakemake "${flags[@]}" report
echo "journey: open $PWD/$results/report/report.html"
