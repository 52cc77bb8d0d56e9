"""Models by name: those that come with the package, those in folders of the user's, and WSInfer's."""
