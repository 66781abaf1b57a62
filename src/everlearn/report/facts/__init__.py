"""What a run folder says: its files read, held against their forms, and what their numbers mean."""
