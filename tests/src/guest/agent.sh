# Runs what the lab sends down the virtio-serial port. A request is a line with two numbers, then a script and its
# stdin of so many bytes. The answer is a line with the exit status and two numbers, then stdout and stderr.
# The port appears when the driver has talked to QEMU, which takes as long as it takes.
until set -- /dev/vport*p* && [ -c "$1" ]; do sleep 0.05; done
exec 3<>"$1"
take() { if [ "$1" -gt 0 ]; then dd bs="$1" count=1 iflag=fullblock of="$2" <&3 2>/dev/null; else : >"$2"; fi; }
# Writing waits until QEMU has told the driver that somebody listens; reading would see an end before that.
echo "ready $(uname -r)" >&3
while read -r script input <&3; do
    take "$script" /run/script
    take "$input" /run/input
    sh /run/script </run/input >/run/stdout 2>/run/stderr 3>&-
    status=$?
    # Others may go on writing: what is announced is what is sent.
    out=$(wc -c </run/stdout) err=$(wc -c </run/stderr)
    echo "$status $out $err" >&3
    head -c "$out" /run/stdout >&3
    head -c "$err" /run/stderr >&3
done
echo "agent: the channel has ended"
poweroff -f
