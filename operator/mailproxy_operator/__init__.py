"""The operator: MailProxy resources become Kubernetes objects, and say how they are."""
