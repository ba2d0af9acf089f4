#!/usr/bin/env bash
# kubectl runs this with the words after `kubectl millrace`, the last of them the one to complete. It takes
# one candidate a line and, behind a colon, what the shell does with them: 4 offers no files beside them.
source <(kubectl-millrace completions bash)
COMP_WORDS=(kubectl-millrace "$@")
COMP_CWORD=$#
# The function sets options of a completion that bash itself has under way, and there is none here.
_millrace kubectl-millrace "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}" 2>/dev/null
if ((${#COMPREPLY[@]})); then
    printf '%s\n' "${COMPREPLY[@]}"
fi
echo ":4"
