# SPDX-License-Identifier: MIT
"""`bpfn config init`, `show` and `validate`."""

from pathlib import Path
from typing import Annotated

from bpfn_cli.cli import options
from bpfn_cli.cli.console import echo, finish, print_json, say
from bpfn_cli.cli.groups import command_group

app = command_group("Write, show and check recipes.")


@app.command()
def init(
    out: Annotated[Path, options.path("--out", help="File to write.", metavar="FILE")] = Path("recipe.yaml"),
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Write the default recipe, to start from, with a comment above each key.

    \b
    Examples:
      $ bpfn config init                     # recipe.yaml
      $ bpfn config init --out fast.yaml     # a name of your own
    """
    from bpfn_cli.files import claim_output, write_atomic
    from bpfn_cli.without_torch import tolerate_broken_torch

    tolerate_broken_torch()
    from bpfn_cli.recipes.commented import commented_yaml
    from bpfn_cli.recipes.recipe import Recipe

    claim_output(out, force=force)
    write_atomic(out, commented_yaml(Recipe()).encode())
    if json:
        print_json({"out": str(out)})
    finish(out, "bpfn", "distill", "-c", out)


@app.command()
def show(config: options.RecipeFile = None, changes: options.Set = None, json: options.Json = False) -> None:
    """Print a recipe with all defaults filled in.

    \b
    Examples:
      $ bpfn config show                                        # the default recipe
      $ bpfn config show -c recipe.yaml --set train.lr=5e-4     # your recipe with a change
    """
    from bpfn_cli.config import to_yaml
    from bpfn_cli.without_torch import tolerate_broken_torch

    tolerate_broken_torch()
    from bpfn_cli.recipes.identity import recipe_tree
    from bpfn_cli.recipes.reading import load_recipe

    tree = recipe_tree(load_recipe(config, changes or [], {}))
    if json:
        print_json(tree)
    else:
        echo(to_yaml(tree).rstrip())


@app.command()
def validate(
    config: Annotated[Path, options.path_argument(help="Recipe (YAML).", metavar="FILE")],
    json: options.Json = False,
) -> None:
    """Check a recipe and report all its mistakes.

    \b
    Examples:
      $ bpfn config validate recipe.yaml            # exit code 0 if it is valid, else 2
      $ bpfn config validate recipe.yaml --json     # for a script
    """
    from bpfn_cli.without_torch import tolerate_broken_torch

    tolerate_broken_torch()
    from bpfn_cli.recipes.reading import load_recipe

    load_recipe(config, [], {})
    if json:
        print_json({"recipe": str(config), "valid": True})
    say(f"{config}: valid")
