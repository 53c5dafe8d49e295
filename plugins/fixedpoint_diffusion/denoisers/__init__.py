"""What denoises: functions, networks, known scores."""
