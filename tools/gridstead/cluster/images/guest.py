"""What the virtual machine's image has beyond the roles' install halves: packages, files, and the script that puts them in place."""

from __future__ import annotations

#: ``{uuid}``: the root file system's.
ROOT_UUID = "{uuid}"

PACKAGES = (
    # Debian's kernel for virtual machines: virtio, NVMe and AHCI disks; NFS server and client; a fifth of the size of the other.
    *("linux-image-cloud-amd64", "initramfs-tools", "zstd", "udev"),
    # cloud-init lets users in; systemd-repart grows the root partition into the disk, in a tenth of growpart's time.
    *("cloud-init", "systemd-repart"),
    # The node's own name resolves without a line in /etc/hosts, which is role base's to write.
    *("libnss-myhostname", "systemd-resolved"),
)
#: Of systemd's generators those for what these machines do not have: each is a program more to run before anything can start.
GENERATORS_OFF = (
    *("systemd-gpt-auto-generator", "systemd-hibernate-resume-generator", "systemd-rc-local-generator"),
    *("systemd-ssh-generator", "systemd-system-update-generator", "systemd-sysv-generator", "systemd-tpm2-generator"),
)
#: Modules that units ask for at boot and these machines have no use for by then; the kernel still loads them when a program asks.
#: Each costs a program, an xz decompression, and for loop eight devices to announce.
MASKED = ("modprobe@drm.service", "modprobe@dm_mod.service", "modprobe@loop.service")
#: Masked for containers (kitchen.py) and needed here.
UNMASKED = (
    *("systemd-udevd.service", "systemd-udev-trigger.service", "systemd-logind.service", "systemd-modules-load.service"),
    *("getty.target", "dev-hugepages.mount"),
)

_PRESET = """\
# Roles enable what a node offers; packages of other roles lie in the image without effect.
enable ssh.service
enable dbus.service
enable dbus.socket
enable remote-fs.target
enable systemd-networkd.service
enable systemd-networkd.socket
enable systemd-networkd-wait-online.service
enable systemd-resolved.service
enable cloud-*
disable *
"""

_CLOUD_INIT = """\
# Written by Gridstead. What a node is, its roles say; cloud-init lets them in: name, user, keys.
datasource_list: [ConfigDrive, OpenStack, NoCloud, None]
# Every interface has DHCP from the first moment (80-gridstead.network).
network: {config: disabled}
datasource:
  OpenStack: {apply_network_config: false}
users: [default]
system_info:
  default_user:
    name: debian
    gecos: Debian
    groups: [adm, sudo, systemd-journal]
    sudo: ["ALL=(ALL) NOPASSWD:ALL"]
    shell: /bin/bash
    lock_passwd: true
disable_root: true
ssh_genkeytypes: [ed25519]
ssh_quiet_keygen: true
no_ssh_fingerprints: true
cloud_init_modules: [bootcmd, write_files, set_hostname, users_groups, ssh, keys_to_console]
cloud_config_modules: [runcmd]
cloud_final_modules: [scripts_user, final_message]
"""

_NETWORK = """\
[Match]
Type=ether
Kind=!*

[Link]
RequiredForOnline=routable
RequiredFamilyForOnline=ipv4

[Network]
DHCP=ipv4

[DHCPv4]
UseMTU=true
UseDomains=true
# An address that a node gets by DHCP is the port's own for its life.
SendRelease=false
"""

_ROOT = """\
# systemd-repart grows this partition to the end of the disk; fstab's x-systemd.growfs its file system.
[Partition]
Type=root
"""

_COLDPLUG = """\
[Service]
# What modules, buses and drivers would announce at boot is more than half of all, and concerns no rule that matters here.
ExecStart=
ExecStart=-udevadm trigger --type=devices --action=add --prioritized-subsystem=block,net,tty
"""

_ONLINE = """\
[Service]
# One interface with an address is enough: a node's others may have none.
ExecStart=
ExecStart=/usr/lib/systemd/systemd-networkd-wait-online --any --timeout=60
"""

_INITRAMFS = """\
MODULES=list
BUSYBOX=n
KEYMAP=n
COMPRESS=zstd
FSTYPE=ext4
RESUME=none
"""

_NO_UDEV = """\
#!/bin/sh
# The kernel's devtmpfs has the disks and blkid finds the root among them: no udev, and none of what only udev would use.
[ "$1" != prereqs ] || { echo udev dmsetup; exit 0; }
rm -rf "$DESTDIR"/usr/lib/udev "$DESTDIR"/usr/lib/systemd "$DESTDIR"/etc/udev
rm -rf "$DESTDIR"/usr/lib/x86_64-linux-gnu/systemd
rm -f "$DESTDIR"/usr/bin/udevadm "$DESTDIR"/usr/sbin/dmsetup "$DESTDIR"/scripts/*/udev
"""

_GRUB = """\
set timeout=0
linux /vmlinuz root=UUID={uuid} ro console=tty0 console=ttyS0,115200 quiet
initrd /initrd.img
boot
"""

_FSTAB = """\
UUID={uuid} / ext4 errors=remount-ro,noatime,x-systemd.growfs 0 1
"""

#: Path in the guest to text.
FILES = {
    "etc/systemd/system-preset/00-gridstead.preset": _PRESET,
    "etc/systemd/network/80-gridstead.network": _NETWORK,
    "etc/systemd/system/systemd-networkd-wait-online.service.d/gridstead.conf": _ONLINE,
    "etc/systemd/system/systemd-udev-trigger.service.d/gridstead.conf": _COLDPLUG,
    "etc/repart.d/50-root.conf": _ROOT,
    # The list of data sources is short: asking each costs less than the shell script that narrows it down.
    "etc/cloud/ds-identify.cfg": "policy: enabled\n",
    "etc/cloud/cloud.cfg.d/99-gridstead.cfg": _CLOUD_INIT,
    "etc/initramfs-tools/conf.d/gridstead": _INITRAMFS,
    # ext4, virtio_pci and NVMe are in the kernel itself; these are the other disks that KVM clouds offer.
    "etc/initramfs-tools/modules": "virtio_blk\nvirtio_scsi\nsd_mod\nahci\nata_piix\n",
    "etc/initramfs-tools/hooks/zz-gridstead": _NO_UDEV,
    "etc/fstab": _FSTAB,
    "boot/grub/grub.cfg": _GRUB,
}

#: Run in the container, with the packages as arguments. GRUB's core image needs nothing of GRUB in the guest.
INSTALL = """\
set -eu
export DEBIAN_FRONTEND=noninteractive
printf '#!/bin/sh\\nexit 101\\n' >/usr/sbin/policy-rc.d
chmod 755 /usr/sbin/policy-rc.d
apt-get -qq update
apt-get -qq install --yes --no-install-recommends -o Dpkg::Options::=--force-confold "$@"
apt-get -qq install --yes --no-install-recommends grub-pc-bin grub-common
grub-mkimage --format=i386-pc --prefix='(,gpt2)/boot/grub' --output=/boot/grub/core.img \\
  biosdisk part_gpt ext2 normal linux echo test configfile search search_fs_uuid
cp /usr/lib/grub/i386-pc/boot.img /boot/grub/boot.img
apt-get -qq purge --yes --auto-remove grub-pc-bin grub-common
mkdir -p /etc/systemd/system-generators
for generator in {generators}; do ln -sf /dev/null "/etc/systemd/system-generators/$generator"; done
systemctl unmask --quiet {unmasked}
systemctl mask --quiet {masked}
systemctl preset-all --quiet
rm -f /usr/sbin/policy-rc.d /etc/ssh/sshd_config.d/05-gridstead-seed.conf /etc/ssh/ssh_host_*_key*
apt-get clean
rm -rf /var/lib/apt/lists/* /var/cache/debconf/*-old /var/log/journal/* /var/log/*.log /var/log/apt /root/.ansible /tmp/* /var/tmp/*
touch --date=@0 /var/lib/apt/lists
"""

#: Run where podman's mounts are, on the stopped container's file system ``$1``: what its engine had mounted over.
FINISH = """\
set -eu
cd "$1"
ln -sf ../run/systemd/resolve/stub-resolv.conf etc/resolv.conf
printf '127.0.0.1\\tlocalhost\\n::1\\tlocalhost ip6-localhost\\n' >etc/hosts
rm -f etc/hostname
: >etc/machine-id
# Units that bring caches up to date after an upgrade of /usr have nothing to do.
touch etc/.updated var/.updated
"""


def install() -> str:
    """The script that makes a machine of the container, with the names of units and generators in it."""
    words = {"{unmasked}": UNMASKED, "{masked}": MASKED, "{generators}": GENERATORS_OFF}
    script = INSTALL
    for placeholder, names in words.items():
        script = script.replace(placeholder, " ".join(names))
    return script
