"""OpenAI's API: what each route takes, does and responds. Knows HTTP only through an exchange."""
