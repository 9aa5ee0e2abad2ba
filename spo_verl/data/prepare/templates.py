"""The instructions that follow a problem. All of their wording is here, and only here.

A template is part of a prompt and so of its identity: another wording makes other prompts (docs/howto-datasets.md).
"""

from dataclasses import dataclass

from spo_verl.data.prepare.data_errors import SpoDataError

# The sentence that the Qwen models' cards recommend for mathematics.
BOXED = "Please reason step by step, and put your final answer within \\boxed{}."

_TOOL = (
    f"{BOXED} You may call the tool that runs Python code as often as it helps, for calculations, for searches through "
    "many cases or to check a result; it returns what the code prints."
)

_CODE = (
    "Reason step by step. Where a calculation helps, write Python between <code> and </code>: it is executed at once, "
    "and what it prints is handed to you between <interpreter> and </interpreter>. Print every value that you need, "
    "read the output, and go on reasoning; correct the code when it fails. Put your final answer within \\boxed{}."
)


@dataclass(frozen=True)
class Template:
    """How a problem becomes the user's message.

    Attributes:
        name: as on the command line.
        instruction: follows the problem, after an empty line; may be empty.
        purpose: in one sentence.
    """

    name: str
    instruction: str
    purpose: str

    def render(self, problem: str) -> str:
        """The content of the user's message."""
        return f"{problem}\n\n{self.instruction}" if self.instruction else problem

    def messages(self, problem: str) -> list[dict[str, str]]:
        """The prompt: one message of the user."""
        return [{"role": "user", "content": self.render(problem)}]


TEMPLATES: dict[str, Template] = {
    template.name: template
    for template in (
        Template("boxed", BOXED, "reasoning in text, the answer in a box"),
        Template("code", _CODE, "code in tags, executed while the model writes"),
        Template("tool", _TOOL, "a model that calls tools in its own format; the answer in a box"),
        Template("none", "", "the problem alone"),
    )
}


def own_template(instruction: str) -> Template:
    """The template with an instruction of the user's own.

    Raises:
        SpoDataError: it is empty.
    """
    if not instruction.strip():
        raise SpoDataError("the instruction is empty: for the problem alone take --template none.")
    return Template("own", instruction.strip(), "an instruction of the user's own")


def find_template(name: str) -> Template:
    """The template of that name.

    Raises:
        SpoDataError: no template has it.
    """
    try:
        return TEMPLATES[name]
    except KeyError:
        raise SpoDataError(f"there is no template {name!r}: take one of {', '.join(TEMPLATES)}.") from None


def without_template(content: str) -> str:
    """A user's message without the instruction of a template of this file, if it ends with one."""
    # The longest first: one instruction may begin with another.
    for template in sorted(TEMPLATES.values(), key=lambda one: -len(one.instruction)):
        if template.instruction and content.endswith(template.instruction):
            return content.removesuffix(template.instruction).rstrip()
    return content
