"""What happens to pools without their users' doing."""
