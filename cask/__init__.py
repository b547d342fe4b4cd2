"""The cask: experiments on small real pretrained models, which a package index brings."""
