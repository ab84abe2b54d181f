"""Speed of servers with the same members, measured side by side; tests never assert a time."""
