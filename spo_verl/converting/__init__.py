"""A verl command or script of another method turned into one of SPO: read without a shell, decided by rules, edited."""

from spo_verl.converting.convert import Conversion, Converted, command_line, convert_script

__all__ = ["Conversion", "Converted", "command_line", "convert_script"]
