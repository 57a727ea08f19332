# Prints a line for each frame that arrives at a network device: the kernel's wall time in seconds, and the source address.
# usage: perl watch-frames.pl DEVICE. Says "ready" first. Perl is on every Debian, and needs no privilege to drop (packet(7)).
use strict;
use warnings;

my ($device) = @ARGV;
my ($AF_PACKET, $SOCK_RAW, $ETH_P_ALL, $PACKET_OUTGOING) = (17, 3, 0x0300, 4);    # 0x0300 is ETH_P_ALL in network order.
my ($SIOCGIFINDEX, $SIOCGSTAMP) = (0x8933, 0x8906);

socket(my $frames, $AF_PACKET, $SOCK_RAW, $ETH_P_ALL) or die "a packet socket: $!\n";
my $request = pack('Z16 x24', $device);
ioctl($frames, $SIOCGIFINDEX, $request) or die "$device: $!\n";
my (undef, $index) = unpack('Z16 i', $request);
bind($frames, pack('S S i S C C x8', $AF_PACKET, $ETH_P_ALL, $index, 0, 0, 0)) or die "listening on $device: $!\n";

$| = 1;
print "ready\n";
while (1) {
    my $from = recv($frames, my $frame, 64, 0);
    next if !defined $from || length $frame < 12;
    my (undef, undef, undef, undef, $kind) = unpack('S S i S C', $from);
    next if $kind == $PACKET_OUTGOING;
    my $stamp = pack('q q', 0, 0);
    ioctl($frames, $SIOCGSTAMP, $stamp) or die "a frame's time: $!\n";
    my ($seconds, $microseconds) = unpack('q q', $stamp);
    my $source = join(':', map { sprintf '%02x', $_ } unpack('C6', substr($frame, 6, 6)));
    printf "%d.%06d %s\n", $seconds, $microseconds, $source;
}
