"""Code that the commands of `experiments` share: objects from configs, folders, charts, pages."""
