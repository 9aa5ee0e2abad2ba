"""The pages are tested like code.

| in a page | tested |
|---|---|
| a command with ``main_ppo`` in a bash block | its overrides compose with verl's configuration, and SPO accepts them |
| a row of a status table ("exercised", "composes", "refused") | the same, or that SPO refuses it |
| ``spo-verl ...`` in a bash block, after ``$``, or in inline code | verb, options and required arguments |
| a key of verl or ``spo`` in inline code | it exists |
| a relative link, with or without anchor | it leads somewhere |
| a message in ``docs/troubleshooting.md`` | the code writes it |
| a notebook | it runs, on a made run |
| a Python block | it runs, in order, in a folder with the files that the page names |

Conventions: ``<...>`` and a bare ``...`` are the reader's own text. A block whose first line is ``# file: NAME`` is a
file. A block of Python whose first line is ``# not run: REASON`` is only compiled.
"""
