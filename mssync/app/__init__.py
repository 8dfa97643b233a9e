"""The server of `mssync serve`: the studio (Gradio), its queue, and live sessions over WebSockets."""
