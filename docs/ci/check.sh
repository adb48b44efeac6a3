#!/bin/bash
# What action.yml and gitlab.yml do: install what `check` needs, without torch, and check BUNDLE.
# BASELINE and SETTINGS may be empty; REQUIREMENTS is a file as requirements.txt beside this one,
# which it replaces: every package by version and hash. The exit code is that of `check`.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [[ -z ${MIPKD_PIPELINE:-} ]]; then # a command that is installed already
  python3 -m venv .mipkd-check
  pip=(.mipkd-check/bin/python -m pip install --quiet --disable-pip-version-check)
  "${pip[@]}" --require-hashes --requirement "${REQUIREMENTS:-$here/requirements.txt}"
  "${pip[@]}" --no-deps --no-build-isolation "$here/../.."
  MIPKD_PIPELINE=.mipkd-check/bin/mipkd-pipeline
fi

words=(check "$BUNDLE" --junit mipkd-junit.xml)
[[ -z ${BASELINE:-} ]] || words+=(--baseline "$BASELINE")
[[ -z ${GITHUB_STEP_SUMMARY:-} ]] || words+=(--github --summary "$GITHUB_STEP_SUMMARY")
for setting in ${SETTINGS:-}; do words+=(--set "$setting"); done
[[ -z ${GITHUB_OUTPUT:-} ]] || echo "junit=$PWD/mipkd-junit.xml" >>"$GITHUB_OUTPUT"
exec "$MIPKD_PIPELINE" "${words[@]}"
