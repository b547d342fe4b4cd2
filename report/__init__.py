"""Tables, figures and the page, from the scores, manifests and costs of a results folder."""
