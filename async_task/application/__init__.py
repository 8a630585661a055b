"""`AsyncTask`: the application, with the verbs that its users call."""
