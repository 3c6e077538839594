"""mlbox completion: the script that has a shell ask mlbox what a word may become (client/completion.py)."""

from __future__ import annotations

import argparse
from typing import Any

# Not source <(...), which does nothing in macOS's own bash, 3.2. That looks into no folder of completions either.
_EPILOG = """\
once, then in each new shell (where the folder is not there yet, mkdir -p it first):
  bash  mlbox completion bash > ~/.local/share/bash-completion/completions/mlbox
  zsh   mlbox completion zsh > ~/.zfunc/_mlbox     (with fpath+=~/.zfunc before compinit)
  fish  mlbox completion fish > ~/.config/fish/completions/mlbox.fish

in this shell only, or in the ~/.bash_profile of macOS's own bash: eval "$(mlbox completion bash)\""""

# The program that was typed is asked, whatever its path; COMP_WORDS is broken at `=` and `:`, which it knows.
# `compopt` is newer than macOS's bash: there, files are offered where nothing else is.
_BASH = """\
_mlbox() {
    local IFS=$'\\n' word
    COMPREPLY=()
    compopt +o default 2>/dev/null
    while read -r word; do
        if [[ $word == $'\\tfiles' ]]; then
            compopt -o default 2>/dev/null
        else
            COMPREPLY+=("$word")
        fi
    done < <("${COMP_WORDS[0]/#\\~\\//$HOME/}" completion words bash "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
}
complete -o default -F _mlbox mlbox
"""
_ZSH = """\
#compdef mlbox
_mlbox() {
    local line
    local -a found
    for line in "${(@f)$(${~words[1]} completion words zsh "${(@)words[2,CURRENT]}" 2>/dev/null)}"; do
        case $line in
            $'\\tfiles') _files ;;
            ?*) found+=("${${line%%$'\\t'*}//:/\\\\:}:${line#*$'\\t'}") ;;
        esac
    done
    (( $#found )) && _describe -V mlbox found
}
if [[ $funcstack[1] == _mlbox ]]; then _mlbox "$@"; else compdef _mlbox mlbox; fi
"""
_FISH = """\
function __mlbox_words
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    set -l program (string replace -r '^~/' $HOME/ -- $words[1])
    for line in ($program completion words fish $words[2..] "$current" 2>/dev/null)
        if test $line = \\tfiles
            __fish_complete_path $current
        else
            echo $line
        end
    end
end
complete -c mlbox -f -a '(__mlbox_words)'
"""
_SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def parser(make: Any) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = make(
        description="Print a script that completes mlbox's commands, options, hosts, sessions, jobs and queues.",
        epilog=_EPILOG,
    )
    made.add_argument("shell", choices=tuple(_SCRIPTS), metavar="bash|zsh|fish")
    return made


def main(arguments: argparse.Namespace) -> int:
    print(_SCRIPTS[arguments.shell], end="")
    return 0
