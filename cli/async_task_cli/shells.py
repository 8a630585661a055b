"""Completion for PowerShell, which click does not have; for the other shells it does."""

import os

from click.shell_completion import CompletionItem, ShellComplete, add_completion_class, split_arg_string

SHELLS = {
    "bash": """add to ~/.bashrc:  eval "$(async-task completion bash)\"""",
    "zsh": """add to ~/.zshrc:  eval "$(async-task completion zsh)\"""",
    "fish": "add to ~/.config/fish/config.fish:  async-task completion fish | source",
    "powershell": "add to $PROFILE:  async-task completion powershell | Out-String | Invoke-Expression",
}
"""The shells, and what to do that each session begins with completion."""

SOURCE = """\
Register-ArgumentCompleter -Native -CommandName %(prog_name)s -ScriptBlock {
    param($wordToComplete, $commandAst, $cursorPosition)
    $line = $commandAst.ToString()
    $length = [Math]::Min($line.Length, [Math]::Max(0, $cursorPosition - $commandAst.Extent.StartOffset))
    $env:%(complete_var)s = "powershell_complete"
    $env:COMP_LINE = $line.Substring(0, $length)
    $env:COMP_WORD = $wordToComplete
    try {
        %(prog_name)s | ForEach-Object {
            $value, $help = $_ -split "`t", 2
            if (-not $help) { $help = $value }
            [System.Management.Automation.CompletionResult]::new($value, $value, "ParameterValue", $help)
        }
    } finally {
        Remove-Item Env:%(complete_var)s, Env:COMP_LINE, Env:COMP_WORD -ErrorAction SilentlyContinue
    }
}
"""


@add_completion_class
class PowerShellComplete(ShellComplete):
    """In: the line up to the cursor in COMP_LINE, and the word to complete, which it ends with, in COMP_WORD. Out: a
    line for each completion, its help behind a tab."""

    name = "powershell"
    source_template = SOURCE

    def get_completion_args(self) -> tuple[list[str], str]:
        _, *args = split_arg_string(os.environ["COMP_LINE"])
        incomplete = os.environ.get("COMP_WORD", "")
        return args[:-1] if incomplete and args else args, incomplete

    def format_completion(self, item: CompletionItem) -> str:
        return f"{item.value}\t{item.help}" if item.help else str(item.value)
