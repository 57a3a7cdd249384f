# What up.sh, node.sh and down.sh share; every value may be set in the environment, up.sh keeps what it took in $LAB/up.env.
NUMBER=${NUMBER:-0}                    # of the lab: others may be up at once, each with another number (0-199)
LAB=${LAB:-/tmp/mres-slurm-$NUMBER}    # state, logs, sockets; removed by down.sh
[ -e "$LAB/up.env" ] && . "$LAB/up.env"
PREFIX=${PREFIX:-m${NUMBER}n}          # of the nodes' names, and of their network namespaces'
NODES=${NODES:-4}
CPUS=${CPUS:-16}                       # that a node claims to have
GPUS=${GPUS:-8}                        # fake ones: CUDA_VISIBLE_DEVICES is set, nothing is behind them (at most 64: /dev/tty0-63)
GRACE=${GRACE:-60}                     # seconds between a preempted job's warning and its end
NET=${NET:-10.78.$NUMBER}              # the first three bytes of the lab's network
BRIDGE=${BRIDGE:-mslurm$NUMBER}
NAMES=${NAMES:-yes}                    # no: names of nodes do not resolve (as on clusters without DNS for nodes)
CTLD_PORT=${CTLD_PORT:-$((16900 + NUMBER))}
SLURMD_PORT=${SLURMD_PORT:-16818}      # each in a network of its own
SLURMD_TIMEOUT=${SLURMD_TIMEOUT:-300}  # seconds until a silent node is DOWN (SLURM's default: 300)
USER_SIGNAL=${USER_SIGNAL:-yes}        # yes: a preempted job gets its --signal; no (SLURM's default): SIGTERM alone
NICE=${NICE:-5}                        # of the slurmds, and so of all tasks
HOSTS_MARK="# mres-slurm:$LAB"
HOSTS_LOCK=/tmp/mres-slurm-hosts.lock
export SLURM_CONF=$LAB/slurm.conf PATH=$PATH:/usr/sbin:/sbin
addr() { echo "$NET.$((11 + $1))"; }
