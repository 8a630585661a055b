"""What a request asks for: its parameters, and the words of the search box."""
