# The first process of a node. The node's programs take some paths of the machine for granted; here
# each of these gets a place of the node's own, seen by them alone and gone with them.
set -e
work=$1

mount --make-rshared /
# Network namespaces of pods, sockets of containerd's shims, locks.
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/lock
mount --bind "$work/log/node" /var/log
# A mount needs a place: these empty folders are all that stays on the machine.
mkdir -p /var/lib/kubelet /var/lib/cni
mount --bind "$work/kubelet" /var/lib/kubelet
mount --bind "$work/pod-networks" /var/lib/cni

# The kubelet insists on settings of the whole machine. It shall find them without changing them.
for setting in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
    kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
  file=$work/settings/$(basename "${setting%=*}")
  echo "${setting#*=}" > "$file"
  mount --bind "$file" "/proc/sys/${setting%=*}"
done

# This one is of the node's own network.
echo 1 > /proc/sys/net/ipv4/ip_forward

touch "$work/run/ready"
# While it waits, the shell collects the processes whose parents have ended.
sleep infinity &
wait
