"""OpenAI's wire: what each route takes, does and answers. Knows HTTP only through an exchange."""
