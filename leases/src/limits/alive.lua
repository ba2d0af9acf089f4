-- A worker that makes calls is alive, though it had nothing else to say lately.
hear(ARGV[1])
touch()
return 1
