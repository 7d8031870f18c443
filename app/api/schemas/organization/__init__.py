"""Request and response bodies of the calls for administrators."""
