"""Who is asking: principals and, later, roles and limits."""
