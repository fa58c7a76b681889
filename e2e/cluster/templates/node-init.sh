#!/bin/bash
# Process 1 of one node, in network, mount and pid namespaces of its own: with it ends everything
# that belongs to the node. The launcher fills in the {{names}} and moves eth0 in.
set -euo pipefail

# Private places where programs have fixed paths; what must survive a restart lies in the state directory.
mount --make-rshared /
mount -t tmpfs -o mode=755 tmpfs /run          # shim sockets and pod namespaces end with the node
mkdir -p /run/lock /run/cdi /run/etc/upper /run/etc/work
mount -t overlay overlay -o lowerdir=/etc,upperdir=/run/etc/upper,workdir=/run/etc/work /etc
mount -t tmpfs -o mode=755 tmpfs /var/lib
mkdir -p /etc/cdi /var/lib/kubelet /var/lib/stowage /var/lib/cni
rm -f /etc/resolv.conf && : >/etc/resolv.conf  # pods see the cluster's names only
for pair in kubelet:/var/lib/kubelet stowage:/var/lib/stowage cdi:/run/cdi etc-cdi:/etc/cdi libcni:/var/lib/cni; do
  mount --bind "{{dir}}/${pair%%:*}" "${pair#*:}"
done

for _ in {1..300}; do ip route show default | grep -q eth0 && break; sleep 0.1; done
sysctl -qw net.ipv4.ip_forward=1
# Else a Service whose pod is on the same bridge hangs: its packets would bypass kube-proxy's rules.
sysctl -qw net.bridge.bridge-nf-call-iptables=1

# keep NAME COMMAND...: a daemon with its own log, started again when it ends (as a service manager would).
keep() {
  local name=$1; shift
  while :; do
    "$@" >>"{{logs}}/{{node}}-$name.log" 2>&1 </dev/null || true
    echo "$name ended, starting it again"
    sleep 1
  done
}

keep containerd containerd -c "{{dir}}/containerd.toml" -l warn &
keep netpol netpol -kubeconfig "{{pki}}/admin.kubeconfig" -node "{{node}}" &
keep kube-proxy kube-proxy --config="{{dir}}/kube-proxy.yaml" &
for _ in {1..300}; do ctr -a "{{dir}}/run/containerd.sock" version >/dev/null 2>&1 && break; sleep 0.1; done
ctr -a "{{dir}}/run/containerd.sock" -n k8s.io images import --all-platforms "{{pause_archive}}" >/dev/null
keep kubelet kubelet --config="{{dir}}/kubelet.yaml" --kubeconfig="{{pki}}/{{node}}.kubeconfig" \
  --hostname-override="{{node}}" --node-ip="{{node_ip}}" --root-dir=/var/lib/kubelet --cert-dir=/var/lib/kubelet/pki \
  --node-labels="stowage.dev/simulated-gpus={{gpu_profile}}" &
wait
