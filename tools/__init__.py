"""Programs for developers; the service never imports them."""
