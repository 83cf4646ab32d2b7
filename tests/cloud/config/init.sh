#!/bin/bash
# Process 1 of the cloud's machine, until supervisord takes its place: sets up the mounts.
# Started by machine.py in new mount, pid, uts and ipc namespaces:   init.sh ROOT STATE end
# (The arguments are also how machine.py finds the machine again.)
set -euo pipefail
root=$1 state=$2

hostname gridstead-cloud
mount --bind "$root" "$root"
cd "$root"
mount -t proc -o nosuid,nodev,noexec proc proc
mount -t tmpfs -o mode=755,nosuid tmpfs run
mkdir -p run/{lock,netns,mysqld,libvirt,rabbitmq} run/lock/{nova,neutron,cinder,glance}
chmod 1777 run/lock
chown --reference=var/lib/rabbitmq run/rabbitmq
chown --reference=var/lib/mysql run/mysqld

# A way back to the host's network: the DNS forwarder asks the host's resolvers from there.
touch run/host-net
mount --bind proc/self/ns/net run/host-net

# Only the devices that OpenStack needs, not the host's disks.
mount -t tmpfs -o mode=755,nosuid tmpfs dev
mkdir -p dev/{pts,shm,net}
mount -t devpts -o mode=620,gid=5,ptmxmode=666,newinstance devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t tmpfs -o mode=1777 tmpfs dev/shm
for device in null zero full random urandom tty kvm net/tun vhost-net; do
    if [[ -c /dev/$device ]]; then
        touch "dev/$device"
        mount --bind "/dev/$device" "dev/$device"
    fi
done

# What the cloud writes lies in the state directory, not in the cached root file system. It begins as the packages left it.
for directory in mysql keystone glance nova cinder neutron libvirt; do
    if [[ ! -d $state/$directory ]]; then
        rm -rf "$state/.$directory"
        cp --archive "var/lib/$directory" "$state/.$directory"
        mv "$state/.$directory" "$state/$directory"
    fi
    mount --bind "$state/$directory" "var/lib/$directory"
done
mkdir -p srv/volumes var/log/gridstead "$state"/{volumes,log}
mount --bind "$state/volumes" srv/volumes
mount --bind "$state/log" var/log/gridstead
mount -t tmpfs -o mode=700 tmpfs etc/libvirt/qemu # libvirt's domains

# /sys shows the network namespace it was mounted in: the cloud's own.
exec unshare --net bash -euo pipefail -c '
    mount -t sysfs sysfs sys
    # The old root goes away altogether: no mount of the host is visible inside, or held busy by it.
    mount --make-private .
    pivot_root . .
    umount --lazy .
    cd /
    exec /usr/bin/supervisord --nodaemon --configuration /etc/gridstead/supervisord.conf' </dev/null
