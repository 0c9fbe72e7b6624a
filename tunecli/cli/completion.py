"""Print a completion script for a shell.

bash: echo 'eval "$(tune completion bash)"' >> ~/.bashrc
zsh:  echo 'eval "$(tune completion zsh)"' >> ~/.zshrc          (after compinit)
fish: tune completion fish > ~/.config/fish/completions/tune.fish
"""

from __future__ import annotations

import argparse

# bash splits words at `=`, `:` and `@`; $2 is the piece it will replace, so what stands before it is cut off again.
# Nothing here is newer than bash 3.2, which macOS has.
BASH = r"""
_tune() {
    local line=${COMP_LINE:0:COMP_POINT} words last IFS
    read -ra words <<< "$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    last=${words[${#words[@]}-1]}
    IFS=$'\n'
    COMPREPLY=($("$1" __complete "${words[@]:1}" 2>/dev/null))
    COMPREPLY=("${COMPREPLY[@]#"${last%"$2"}"}")
    [[ ${COMPREPLY[0]} == *[=.] ]] && compopt -o nospace 2>/dev/null
}
complete -o default -F _tune tune tunecli
"""

ZSH = r"""
_tune() {
    local -a found
    found=(${(f)"$($words[1] __complete ${words[2,CURRENT-1]} "$PREFIX" 2>/dev/null)"})
    if (( $#found )); then
        compadd -S '' -- ${(M)found:#*[=.]}
        compadd -- ${found:#*[=.]}
    else
        compset -P '*='
        _files
    fi
}
compdef _tune tune tunecli
"""

FISH = r"""
function __tune_complete
    set -l words (commandline -opc)
    $words[1] __complete $words[2..] (commandline -ct) 2>/dev/null
end
for command in tune tunecli
    complete -c $command -f -a '(__tune_complete)'
    complete -c $command -n 'not __tune_complete | string length -q' -F
end
"""

SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=tuple(SCRIPTS))


def run(args: argparse.Namespace) -> int:
    print(SCRIPTS[args.shell].strip())
    return 0
