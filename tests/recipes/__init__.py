"""`make test-recipes`: the tests of each recipe in examples/recipes, in an environment of its own."""
